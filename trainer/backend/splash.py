"""JAX's splash attention, a fused TPU kernel for causal, windowed and packed rows, as differentiable torch operations.

Scores never reach memory and blocks that the causal mask or the window hides are not visited (the Pallas kernel of
jax.experimental.pallas.ops.tpu.splash_attention, after FlashAttention, arXiv 2205.14135). JAX lowers a forward and a
backward program once for each set of shapes; what runs them is told by `use`, so that this file knows no torch_xla.
Lowering needs no TPU: programs are lowered for one whatever JAX finds on this machine.

Rows and heads are those of one chip. The programs hold no sharding: call them where each chip sees its part.

The kernel is private API in part, hence one version of jax. JAX is imported by the first lowering, not by this file.

Shape suffixes: B rows, S places of a row, N query heads, K key and value heads, H head width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conf.exits import ConfigError

JAX = "0.7.1"  # the version that torch_xla 2.9.0 pairs with
LANES = 128  # the width of a TPU's vector registers: blocks are whole multiples of it
BLOCK = 512  # queries and keys at a time, at most; see `_blocks`

Run = Callable[[str, bytes, list[Tensor]], list[Tensor]]
"""(name, serialized HLO module, inputs) -> outputs. Of one program the name and the very bytes object are the same."""


@dataclass(frozen=True)
class Shapes:
    """What a program is lowered for; `dtype` is bfloat16 or float32."""

    B: int
    S: int
    N: int
    K: int
    H: int
    dtype: torch.dtype
    window: int | None
    cap: float | None
    scale: float

    @classmethod
    def of(cls, q_BSNH: Tensor, k_BSKH: Tensor, window: int | None, cap: float | None, scale: float) -> Shapes:
        """Raises ConfigError where the kernel cannot compute these."""
        B, S, N, H = q_BSNH.shape
        assert k_BSKH.shape == (B, S, k_BSKH.shape[2], H), "keys of whole rows, and no more, are needed"
        assert k_BSKH.dtype == q_BSNH.dtype, f"queries in {q_BSNH.dtype}, keys in {k_BSKH.dtype}"
        if found := problems(S, N, k_BSKH.shape[2], H, q_BSNH.dtype):
            raise ConfigError("splash attention: " + "; ".join(found))
        return cls(B, S, N, k_BSKH.shape[2], H, q_BSNH.dtype, window, cap, scale)


def problems(S: int, N: int, K: int, H: int, dtype: torch.dtype) -> list[str]:
    """Why the kernel cannot take such rows and heads, and what to do instead; empty where it can."""
    found = []
    if S % LANES or not S:
        found.append(
            f"rows of {S} tokens are no multiple of {LANES}: choose data.sequence_length so, or another attention"
        )
    if N % K:
        found.append(f"{N} query heads on a chip cannot share {K} key heads evenly: choose another mesh.tensor")
    if dtype not in (torch.bfloat16, torch.float32):
        found.append(f"{dtype} is neither bfloat16 nor float32")
    return found


def use(run: Run, interpret: bool = False) -> None:
    """What runs programs from now on; `interpret` makes them plain HLO for processors, slow and for tests only."""
    global _run, _interpret
    _run, _interpret = run, interpret


def _no_run(name: str, _module: bytes, _inputs: list[Tensor]) -> list[Tensor]:
    raise RuntimeError(f"{name}: splash attention was called before splash.use() told what runs it")


_run: Run = _no_run
_interpret = False


@torch.library.custom_op("gemcutter::splash", mutates_args=())
def splash(
    q_BSNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    segments_BS: Tensor,
    window: int | None,
    cap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """softmax(cap(q k * scale)) v, [B, S, N, H], and the log of the softmax's denominator, [B, N, S] float32.

    Who sees whom is told in `trainer.model.attention.Kernel`; the first key of a window is `window` - 1 places back.
    Who keeps both results need not run the forward program again for gradients. The logarithm carries none.
    """
    shapes = Shapes.of(q_BSNH, k_BSKH, window, cap, scale)
    out_BSNH, lse_BNS = _run("splash", program(shapes, False, _interpret), [q_BSNH, k_BSKH, v_BSKH, segments_BS.int()])
    return out_BSNH, lse_BNS


@torch.library.custom_op("gemcutter::splash_backward", mutates_args=())
def splash_backward(
    grad_BSNH: Tensor,
    q_BSNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    segments_BS: Tensor,
    out_BSNH: Tensor,
    lse_BNS: Tensor,
    window: int | None,
    cap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, from what the forward program gave."""
    shapes = Shapes.of(q_BSNH, k_BSKH, window, cap, scale)
    inputs = [q_BSNH, k_BSKH, v_BSKH, segments_BS.int(), out_BSNH, lse_BNS, grad_BSNH]
    grad_q_BSNH, grad_k_BSKH, grad_v_BSKH = _run("splash_backward", program(shapes, True, _interpret), inputs)
    return grad_q_BSNH, grad_k_BSKH, grad_v_BSKH


@splash.register_fake
def _(q_BSNH: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    B, S, N, _H = q_BSNH.shape
    return q_BSNH.new_empty(q_BSNH.shape), q_BSNH.new_empty(B, N, S, dtype=torch.float32)


@splash_backward.register_fake
def _(_grad: Tensor, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q_BSNH.new_empty(q_BSNH.shape), k_BSKH.new_empty(k_BSKH.shape), v_BSKH.new_empty(v_BSKH.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.numbers = inputs[4:]


def _backward(ctx: Any, grad_BSNH: Tensor, _grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *splash_backward(grad_BSNH, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


splash.register_autograd(_backward, setup_context=_keep)


@functools.cache
def program(shapes: Shapes, backward: bool, interpret: bool = False) -> bytes:
    """A serialized HLO module for one chip; lowering takes about a second."""
    s, full = shapes, shapes.dtype == torch.float32
    with _jax() as jax, jax.default_matmul_precision("highest" if full else None):  # else float32 enters as bfloat16
        from jax._src.interpreters import mlir

        of, numpy = jax.ShapeDtypeStruct, jax.numpy
        dtype = numpy.float32 if full else numpy.bfloat16
        q, kv = of((s.B, s.S, s.N, s.H), dtype), of((s.B, s.S, s.K, s.H), dtype)
        inputs = [q, kv, kv, of((s.B, s.S), numpy.int32)]
        if backward:
            inputs += [q, of((s.B, s.N, s.S), numpy.float32), q]
        traced = jax.jit(_functions(s, interpret)[backward], keep_unused=True).trace(*inputs)
        lowered = traced.lower(
            lowering_platforms=("cpu" if interpret else "tpu",),
            # For export, or this jax writes the kernel in a form that is too new for libtpu 0.0.21.
            _private_parameters=mlir.LoweringParameters(for_export=True),
        )
        module: bytes = lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()
        return module


def _functions(shapes: Shapes, interpret: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward and backward in JAX, of arrays that lie as the tensors of `splash` and `splash_backward` do.

    Queries are scaled before, as the kernel knows no scale. In float32, and rounded once: a bfloat16 scale would be
    another temperature. Where the scale is no power of two this rounding is one that the plain formula lacks; the
    published JAX code of Gemma has it, too.
    """
    from jax import numpy as jnp
    from jax import vmap
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    S, window = shapes.S, shapes.window
    # Masks that are computed in the kernel: of who sees whom the program holds a few bytes for each pair of blocks.
    near = masks.CausalMask((S, S)) if window is None or window >= S else masks.LocalMask((S, S), (window - 1, 0), 0)
    made = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([near] * shapes.N),
        block_sizes=kernels.BlockSizes(**_blocks(S)),
        attn_logits_soft_cap=shapes.cap,
        save_residuals=True,
        interpret=interpret,
    )

    def scaled(x: Any) -> Any:
        return (x.astype(jnp.float32) * shapes.scale).astype(x.dtype)

    def by_head(x: Any) -> Any:
        return x.swapaxes(1, 2)

    def forward(q_BSNH: Any, k_BSKH: Any, v_BSKH: Any, segments_BS: Any) -> tuple[Any, Any]:
        def row(q_NSH: Any, k_KSH: Any, v_KSH: Any, segments_S: Any) -> Any:
            return made(q_NSH, k_KSH, v_KSH, kernels.SegmentIds(segments_S, segments_S))

        out_BNSH, (lse_BNS,) = vmap(row)(by_head(scaled(q_BSNH)), by_head(k_BSKH), by_head(v_BSKH), segments_BS)
        return by_head(out_BNSH), lse_BNS

    def backward(
        q_BSNH: Any, k_BSKH: Any, v_BSKH: Any, segments_BS: Any, out_BSNH: Any, lse_BNS: Any, grad_BSNH: Any
    ) -> tuple[Any, ...]:
        def row(q_NSH: Any, k_KSH: Any, v_KSH: Any, segments_S: Any, out_NSH: Any, lse_NS: Any, grad_NSH: Any) -> Any:
            segments = kernels.SegmentIds(segments_S, segments_S)
            kept = (q_NSH, k_KSH, v_KSH, segments, None, out_NSH, lse_NS, made.dq_mask_info, made.dkv_mask_info)
            return kernels._splash_attention_bwd(**made.kwargs, res=kept, do=grad_NSH)[3:6]

        q_BNSH, out_BNSH, grad_BNSH = by_head(scaled(q_BSNH)), by_head(out_BSNH), by_head(grad_BSNH)
        grad_q_BNSH, grad_k_BKSH, grad_v_BKSH = vmap(row)(
            q_BNSH, by_head(k_BSKH), by_head(v_BSKH), segments_BS, out_BNSH, lse_BNS, grad_BNSH
        )
        return scaled(by_head(grad_q_BNSH)), by_head(grad_k_BKSH), by_head(grad_v_BKSH)

    return forward, backward


def _blocks(S: int) -> dict[str, Any]:
    """How many queries and keys the kernel takes at a time: of the sizes that divide a row the largest up to BLOCK.

    By libtpu's compiler for v5e, whose kernels get 16 MiB of vector memory: 2048 does not fit, and 1024 not with heads
    of 256 and a cap; smaller blocks also skip more of what causality and windows hide.

    Gradients of queries come from a kernel of their own. The one that yields all three writes those of queries once for
    each block of keys and adds them up afterwards: at 8192 places and 8 heads of 256 in bfloat16 it takes 513 MiB of
    temporaries for each row (257 MiB with blocks of 1024) where two kernels take 32, and rounds each part to bfloat16.
    It would spare 2 of 7 products in the backward pass.
    """
    size = next(size for size in range(BLOCK, 0, -LANES) if S % size == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return {f"block_{name}": size for name in names}


@contextlib.contextmanager
def _jax() -> Iterator[Any]:
    """JAX of the right version, on processors, speaking GSPMD as torch_xla does; raises ConfigError."""
    try:
        import jax
    except ImportError as error:
        raise ConfigError(f"splash attention needs jax {JAX}, which is not installed: make setup-tpu") from error
    if jax.__version__ != JAX:
        raise ConfigError(f"splash attention needs jax {JAX}, found {jax.__version__}: make setup-tpu")
    from jax._src import config, xla_bridge

    if not xla_bridge.backends_are_initialized():  # it would open the TPU, which belongs to torch_xla
        jax.config.update("jax_platforms", "cpu")
    with config.use_shardy_partitioner(False):
        yield jax

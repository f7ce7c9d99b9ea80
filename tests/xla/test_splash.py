"""Splash attention on the TPU pair of packages: right numbers, programs that the TPU compiler takes, and torch's view.

Kernels run as plain HLO on virtual devices (Pallas's interpreter), through torch_xla as on a TPU; a TPU is compiled
for, not used. Shape suffixes: as in `trainer.backend.splash`.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch_xla
import torch_xla.core.xla_builder as xb
import torch_xla.runtime as xr
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from conf.exits import ConfigError
from trainer.backend import splash
from trainer.backend.xla.scan import scan
from trainer.model import kernels
from trainer.model.attention import WholeRows

pytestmark = pytest.mark.xla

B, S, H = 2, 256, 128
Inputs = tuple[Tensor, Tensor, Tensor]


@functools.cache
def computation(name: str, module: bytes) -> object:
    return xb.computation_from_module_proto(name, module)


def run(name: str, module: bytes, inputs: list[Tensor]) -> list[Tensor]:
    return torch_xla._XLAC._xla_user_computation(f"xla::{name}", inputs, computation(name, module))


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """Before any gradient: autograd counts devices once, and without those of XLA it fails on them ever after."""
    xr.use_spmd()
    assert xr.global_runtime_device_count() > 0


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(splash, "BLOCK", 128)  # two blocks each way
    splash.program.cache_clear()
    splash.use(run, interpret=True)
    yield
    splash.program.cache_clear()
    splash.use(splash._no_run)


@pytest.fixture
def for_tpu() -> Iterator[None]:
    splash.use(run)
    yield
    splash.use(splash._no_run)


def segments() -> Tensor:
    """A row of documents of several lengths that ends in padding, and one that a single document fills."""
    lengths = [(1, 70), (2, 1), (3, 90), (4, 60), (0, S - 221)]
    ragged_S = torch.cat([torch.full((length,), segment) for segment, length in lengths])
    return torch.stack([ragged_S, torch.ones_like(ragged_S)])


def inputs(N: int, K: int, dtype: torch.dtype) -> tuple[Inputs, Tensor]:
    generator = torch.Generator().manual_seed(N * 100 + K)
    q_BSNH, k_BSKH, v_BSKH, grad_BSNH = (
        torch.randn(B, S, heads, H, generator=generator).to(dtype) for heads in (N, K, K, N)
    )
    return (q_BSNH * 2, k_BSKH, v_BSKH), grad_BSNH  # scores of some size, so that a cap bends them


def with_gradients(attend: Callable[..., Tensor], qkv: Inputs, grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("N", "K", "window", "cap", "scale"),
    [
        (4, 1, None, None, H**-0.5),
        (2, 2, 100, None, H**-0.5),
        (4, 2, 130, 5.0, 0.1),
        (2, 1, 2, None, 0.1),
        (2, 1, S, 5.0, 0.125),
    ],
)
def test_equals_plain_formula(
    N: int, K: int, window: int | None, cap: float | None, scale: float, dtype: torch.dtype
) -> None:
    qkv, grad = inputs(N, K, dtype)
    reference = functools.partial(kernels.reference(segments(), window, WholeRows()), cap=cap, scale=scale)
    exact = with_gradients(reference, tuple(x.double() for x in qkv), grad.double())

    device = torch_xla.device()
    segments_BS = segments().to(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return splash.splash(q, k, v, segments_BS, window, cap, scale)[0]

    lazy = with_gradients(attend, tuple(x.to(device) for x in qkv), grad.to(device))
    torch_xla.sync()
    got = [x.cpu() for x in lazy]

    plain = with_gradients(reference, qkv, grad)
    for name, ours, theirs, true in zip(("out", "dq", "dk", "dv"), got, plain, exact, strict=True):
        assert ours.dtype == dtype
        worst = ((ours.double() - true).abs().max() / true.abs().max()).item()
        error, theirs_error = (((x.double() - true).norm() / true.norm()).item() for x in (ours, theirs))
        # float32 carries 6e-8 an operation, and sums of 128 products some of these. bfloat16 rounds to 2^-9, here the
        # scaled queries, the shares, the output, the gradients of scores and the result; other things than the plain
        # formula does, so that no more is to be asked of both together than to be about as wrong.
        assert worst < (1e-5 if dtype == torch.float32 else 5 * 2**-9), name
        assert error < 2 * theirs_error or dtype == torch.float32, name


@pytest.mark.usefixtures("interpreted")
def test_log_of_denominator() -> None:
    (q_BSNH, k_BSKH, v_BSKH), _ = inputs(2, 1, torch.float32)
    seen_BST = kernels.visible(segments(), 100, WholeRows())
    scores_BNST = torch.einsum("bsnh,bth->bnst", q_BSNH, k_BSKH[:, :, 0]) * 0.1
    want_BNS = scores_BNST.masked_fill(~seen_BST[:, None], -torch.inf).logsumexp(-1)
    lazy = [x.to(torch_xla.device()) for x in (q_BSNH, k_BSKH, v_BSKH, segments())]
    lazy[0].requires_grad_()
    out_BSNH, lse_BNS = splash.splash(*lazy, 100, None, 0.1)
    torch.testing.assert_close(lse_BNS.cpu(), want_BNS, rtol=1e-5, atol=1e-5)
    assert out_BSNH.requires_grad
    assert not lse_BNS.requires_grad  # an error for who differentiates it, no silent zero


def placeholders(rows: int, places: int) -> tuple[Tensor, ...]:
    q, k, v = (xb.create_placeholder_tensor((rows, places, heads, 256), torch.bfloat16) for heads in (8, 1, 1))
    segments_BS = xb.create_placeholder_tensor((rows, places), torch.int32)
    return (*(x.requires_grad_() for x in (q, k, v)), segments_BS)


def kernels_in(tensors: list[Tensor]) -> int:
    return torch_xla._XLAC._get_xla_tensors_hlo(tensors).count('custom_call_target="tpu_custom_call"')


def block(q: Tensor, k: Tensor, v: Tensor, segments_BS: Tensor) -> Tensor:
    """Attention between operations that a caller would compute again."""
    return splash.splash(q.sin(), k, v, segments_BS, None, 50.0, 0.0625)[0].cos()


def keep_attention(_context: object, operation: object, *_: object, **__: object) -> CheckpointPolicy:
    ours = operation == torch.ops.gemcutter.splash.default
    return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.usefixtures("for_tpu")
@pytest.mark.parametrize("kept", [None, "attention"])
def test_traced_for_a_tpu(kept: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel forward and two backward, the forward one not again where its results are kept."""
    monkeypatch.setattr(torch, "xla", torch_xla, raising=False)  # where `checkpoint` looks for the module of a device
    q, k, v, segments_BS = placeholders(4, 2048)
    if kept is None:
        out = block(q, k, v, segments_BS)
    else:
        contexts = functools.partial(create_selective_checkpoint_contexts, keep_attention)
        out = checkpoint(
            block, q, k, v, segments_BS, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )
    assert kernels_in([out]) == 1
    out.float().sum().backward()
    assert kernels_in([out, q.grad, k.grad, v.grad]) == 3


@pytest.mark.usefixtures("for_tpu")
def test_traced_in_a_loop_over_layers() -> None:
    """The loop holds the kernels once, forward and backward, for any number of layers."""
    *inputs, segments_BS = placeholders(2, 1024)
    q, k, v = (tensor.detach() for tensor in inputs)
    weights = xb.create_placeholder_tensor((3, 256), torch.bfloat16)

    def layer(
        carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        (q,), ((weight,),), (k, v, segments_BS) = carry, slices, constants
        with torch.enable_grad():
            entered = q.detach().requires_grad_()
            out = splash.splash(entered * weight, k, v, segments_BS, 512, None, 0.0625)[0]
            (grad,) = torch.autograd.grad(out.float().sum(), entered)
        return [out.detach() + grad], [[]]

    (out,), _ = scan(layer, [q], [weights], [k, v, segments_BS], 1, 3)
    assert kernels_in([out]) == 3


@pytest.mark.usefixtures("for_tpu")
def test_jax_leaves_the_tpu_alone() -> None:
    import jax

    splash.program(splash.Shapes(1, 128, 1, 1, 128, torch.bfloat16, None, None, 1.0), False)
    assert jax.default_backend() == "cpu"


def test_compiles_for_v5e(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "tests/xla/splash_compile.py"],
        capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 10
    for row in rows:
        print(row)
        assert row["kernels"] == (2 if row["backward"] else 1)
        assert row["module_bytes"] < 100_000  # places of 8192 queries, not 8192 x 8192 of a mask
        # Not a whole table of float32 scores (1 GiB a head at 8192 places), nor dq once for each block of keys.
        assert row["temporaries_mib"] < 200, row
    visited = {row["case"]: row["visited"] for row in rows if not row["backward"]}
    assert visited["gemma3_27b local"] == [1, 16, 3]  # of 16 blocks of keys those that a window of 1024 reaches
    assert visited["gemma2_2b local"] == [1, 16, 9]
    assert visited["gemma2_2b global"] == [1, 16, 16]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((200, 8, 1, 256, torch.bfloat16), "rows of 200 tokens are no multiple of 128"),
        ((64, 8, 1, 256, torch.bfloat16), "rows of 64 tokens"),
        ((256, 3, 2, 256, torch.bfloat16), "3 query heads on a chip cannot share 2 key heads"),
        ((256, 8, 1, 256, torch.float16), "torch.float16 is neither"),
    ],
)
def test_names_what_it_cannot_take(arguments: tuple[int, int, int, int, torch.dtype], part: str) -> None:
    (found,) = splash.problems(*arguments)
    assert part in found


def test_all_problems_at_once_and_none() -> None:
    assert len(splash.problems(200, 3, 2, 256, torch.float64)) == 3
    for S, N, H in itertools.product((128, 640, 8192), (1, 8), (128, 256)):
        assert splash.problems(S, N, 1, H, torch.bfloat16) == []


@pytest.mark.usefixtures("for_tpu")
def test_refuses_rows_that_blocks_do_not_fill() -> None:
    with pytest.raises(ConfigError, match="multiple of 128"):
        splash.splash(*(x.detach() for x in placeholders(1, 200)), None, None, 1.0)


def test_another_jax_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "JAX", "0.7.9")
    with pytest.raises(ConfigError, match=r"needs jax 0\.7\.9, found 0\.7\.1"):
        splash.program(splash.Shapes(1, 384, 1, 1, 128, torch.bfloat16, None, None, 1.0), False)


def test_says_what_was_forgotten() -> None:
    q_BSNH = torch.zeros(1, 128, 1, 128)
    with pytest.raises(RuntimeError, match=r"before splash\.use"):
        splash.splash(q_BSNH, q_BSNH, q_BSNH, torch.ones(1, 128, dtype=torch.int32), None, None, 1.0)

"""Parity on one device: our Gemma with transformers', and every way to compute attention with the plain formula.

Bounds, distances being relative (L2):

    Gemma fp32       logits 1e-5, loss 1e-6, gradient of each tensor 1e-5, as in tests/trainer/test_parity.py; no TF32
    Gemma bf16       logits as far from transformers' in fp32 as 1.5 times transformers' own in bf16
    kernels fp32     output and gradients 1e-5: sums of a few hundred terms in another order
    kernels bf16     output and gradients as far from the formula in fp32 as 1.5 times the formula's own in bf16; where
                     a key head serves several, 2 times: torch's kernels round the gradient of each before the sum

Shape suffixes: B rows, S positions, N query heads, K key heads, H head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.gpu.checks import Check, NotRun, Place, held
from tests.trainer.twins import Twins, config_of, in_bf16, relative, rows, twins
from trainer.model.attention import WholeRows
from trainer.model.kernels import KERNELS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOSE = {1: 1.5, 2: 2.0, 4: 2.0}  # by query heads per key head

# Window, soft cap, query heads, key heads.
CASES = ((None, None, 4, 1), (100, None, 4, 2), (None, 2.0, 4, 2), (100, 2.0, 4, 4))


def checks(place: Place) -> dict[str, Check]:
    """Of each generation and precision; of each kernel, precision and case."""
    found: dict[str, Check] = {}
    for generation in (1, 2, 3):
        found[f"gemma{generation} fp32"] = partial(gemma_fp32, generation, place)
        found[f"gemma{generation} bf16"] = partial(gemma_bf16, generation, place)
    for name in KERNELS:
        for precision in DTYPES if name != "reference" else ():
            for case in CASES:
                window, cap, num_heads, num_kv_heads = case
                label = f"{name} {precision} window {window} cap {cap} heads {num_heads}/{num_kv_heads}"
                found[label] = partial(kernel, name, precision, case, place)
    return found


def gemma_fp32(generation: int, place: Place) -> dict[str, Any]:
    """Logits, loss and gradients of equal weights."""
    both, (tokens_BS, segments_BS, positions_BS) = _moved(generation, place)
    targets_BS = tokens_BS.roll(-1, 1)
    with torch.no_grad():
        logits = both.ours(tokens_BS, segments_BS, positions_BS)
    expected = both.theirs(tokens_BS).logits
    loss = both.ours(tokens_BS, segments_BS, positions_BS, targets_BS)
    their_loss = F.cross_entropy(expected.flatten(0, 1), targets_BS.flatten(), reduction="sum")
    loss.backward()
    their_loss.backward()
    theirs = dict(both.theirs.named_parameters())
    gradients = [
        relative(parameter.grad, theirs[both.names[name]].grad) for name, parameter in both.ours.named_parameters()
    ]
    return held(
        {
            "logits": (relative(logits, expected.detach()), 1e-5),
            "loss": (relative(loss.detach(), their_loss.detach()), 1e-6),
            "gradients": (max(gradients), 1e-5),
        }
    )


@torch.no_grad()
def gemma_bf16(generation: int, place: Place) -> dict[str, Any]:
    """Each by its distance from fp32."""
    both, row = _moved(generation, place)
    exact = both.theirs(row[0]).logits
    in_bf16(both)
    ours, theirs = relative(both.ours(*row), exact), relative(both.theirs(row[0]).logits, exact)
    assert ours > 0, "bf16 gave what fp32 gives"
    return held({"logits": (ours, 1.5 * theirs)})


def _moved(generation: int, place: Place) -> tuple[Twins, tuple[Tensor, ...]]:
    both = twins(config_of(generation), 0.1)
    both.ours.to(place.device)
    both.theirs.to(place.device)
    return both, tuple(x.to(place.device) for x in rows())


def kernel(name: str, precision: str, case: tuple[int | None, float | None, int, int], place: Place) -> dict[str, Any]:
    """Output and gradients over packed documents with padding."""
    if name == "flex" and place.device == "cpu":
        raise NotRun("torch has no gradients of flex attention on a CPU")
    torch.compiler.reset()  # else cases add up to more programs than one function may have
    exact = _attention("reference", "fp32", case, place)
    ours = _attention(name, precision, case, place)
    if precision == "fp32":
        return held({what: (relative(ours[what], exact[what]), 1e-5) for what in ours})
    plain = _attention("reference", precision, case, place)
    close = CLOSE[case[2] // case[3]]
    return held({x: (relative(ours[x], exact[x]), close * relative(plain[x], exact[x])) for x in ours})


def _attention(name: str, precision: str, case: tuple[int | None, float | None, int, int], place: Place):
    """The output and the gradients of queries, keys and values."""
    window, cap, num_heads, num_kv_heads = case
    S, H = (160, 16) if place.quick else (640, 64)
    draw = torch.Generator().manual_seed(5)
    q_BSNH, k_BSKH, v_BSKH, weight_BSNH = (  # exact in bf16, so that only the computation rounds
        torch.randn(2, S, heads, H, generator=draw).bfloat16().to(place.device, DTYPES[precision])
        for heads in (num_heads, num_kv_heads, num_kv_heads, num_heads)
    )
    inputs = [x.requires_grad_() for x in (q_BSNH, k_BSKH, v_BSKH)]
    ends = torch.tensor([[0.1, 0.12, 0.8, 0.9], [1, 1, 1, 1]]) * S  # documents, then padding; one document
    documents_BS = (torch.arange(S)[None, :, None] >= ends[:, None]).sum(2) + 1
    segments_BS = documents_BS.where(documents_BS <= 4, 0).int().to(place.device)
    out_BSNH = KERNELS[name](segments_BS, window, WholeRows())(*inputs, cap, H**-0.5)
    gradients = torch.autograd.grad((out_BSNH * weight_BSNH).sum(), inputs)
    return {"output": out_BSNH.detach(), **dict(zip(("queries", "keys", "values"), gradients, strict=True))}

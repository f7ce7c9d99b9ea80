"""Attention over packed rows: who sees whom, and that both paths compute the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainer.model.attention import WholeRows
from trainer.model.document_attention import QUERIES, attend_documents, attend_documents_backward, first_keys
from trainer.model.kernels import KERNELS, reference, visible
from trainer.model.layers import RMSNorm, rope_tables, rotate

B, S, H = 2, 37, 8


def heads(num_heads: int, num_kv_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_heads * 10 + num_kv_heads)
    return [
        torch.randn(B, S, n, H, generator=generator).to(dtype).requires_grad_()
        for n in (num_heads, num_kv_heads, num_kv_heads)
    ]


def packed() -> Tensor:
    """Two rows of documents, one with padding at its end and one with a single document."""
    first = torch.tensor([1] * 9 + [2] + [3] * 20 + [0] * 7)
    return torch.stack([first, torch.ones(S, dtype=torch.long)]).int()


@given(
    segments=st.lists(st.integers(0, 3), min_size=1, max_size=12).map(sorted),
    window=st.one_of(st.none(), st.integers(1, 14)),
)
@settings(deadline=None)
def test_a_query_sees_earlier_keys_of_its_segment_within_the_window(segments: list[int], window: int | None) -> None:
    seen = visible(torch.tensor([segments]), window, WholeRows())[0]
    for q in range(len(segments)):
        for k in range(len(segments)):
            expected = k <= q and segments[q] == segments[k] and (window is None or k > q - window)
            assert seen[q, k].item() == expected


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name not in ("reference", "flex")])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 1), (4, 2), (4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 1, 5, 20, 64])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_every_kernel_equals_the_reference(kernel, num_heads, num_kv_heads, window, cap) -> None:
    q, k, v = heads(num_heads, num_kv_heads)
    out, plain = (KERNELS[name](packed(), window, WholeRows())(q, k, v, cap, 0.3) for name in (kernel, "reference"))
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-6)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    for ours, expected in zip(
        torch.autograd.grad((out * weight).sum(), (q, k, v)),
        torch.autograd.grad((plain * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("cap", [None, 2.0])
@torch.no_grad()
def test_flex_equals_the_reference(window, cap) -> None:
    """Forward only: torch has no gradients of it on a processor."""
    q, k, v = (x.detach() for x in heads(4, 2))
    out, plain = (KERNELS[name](packed(), window, WholeRows())(q, k, v, cap, 0.3) for name in ("flex", "reference"))
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-6)


@given(
    segments=st.lists(st.integers(0, 3), min_size=2, max_size=16).map(sorted),
    window=st.one_of(st.none(), st.integers(1, 18)),
)
@settings(deadline=None)
def test_documents_apart_are_documents_masked(segments: list[int], window: int | None) -> None:
    q, k, v = (x[:, : len(segments) // 2] for x in heads(4, 2))
    rows = torch.tensor([segments])[:, : len(segments) // 2 * 2].view(2, -1)
    out, plain = (KERNELS[name](rows, window, WholeRows())(q, k, v, None, 0.3) for name in ("documents", "reference"))
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [[333], [128, 128, 77], [5, 250, 78], [1] * 130 + [203], [200, 100, 33]])
@pytest.mark.parametrize("window", [None, 1, 100, QUERIES, 129, 260])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_blocks_of_queries_are_documents_masked(lengths: list[int], window: int | None, cap: float | None) -> None:
    """With documents and windows that begin within blocks, where blocks begin, and blocks before."""
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    segments = torch.stack([ids, ids.flip(0)])
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 333, n, H, generator=generator).requires_grad_() for n in (4, 2, 2))
    weight = torch.randn(q.shape, generator=generator)
    results = []
    for name in ("documents", "reference"):
        out = KERNELS[name](segments, window, WholeRows())(q, k, v, cap, 0.3)
        results.append((out, *torch.autograd.grad((out * weight).sum(), (q, k, v))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_operations_of_blocks_are_counted_as_they_are_done() -> None:
    """What is registered for torch's counter against what passes through torch."""
    ids = torch.tensor([0] * 100 + [1] * 233)[None]
    q, k, v = (torch.zeros(1, 333, n, H) for n in (4, 2, 2))
    first = first_keys(ids, 150)
    for operation, tensors in ((attend_documents, (q, k, v)), (attend_documents_backward, (q, q, k, v))):
        counted = []
        for way in (operation, operation._init_fn):
            with FlopCounterMode(display=False) as counter:
                way(*tensors, first, None, 1.0)
            counted.append(counter.get_total_flops())
        assert counted[0] == counted[1] > 0


HEADS = [(4, 1), (4, 2), (4, 4), (1, 1)]


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_are_an_operation_as_torch_wants_it(num_heads: int, num_kv_heads: int, dtype: torch.dtype) -> None:
    q, k, v = heads(num_heads, num_kv_heads, dtype)
    first = first_keys(packed(), None)
    torch.library.opcheck(attend_documents, (q, k, v, first, None, 0.3))
    torch.library.opcheck(attend_documents_backward, (*(x.detach() for x in (q, q, k, v)), first, None, 0.3))


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_compilation_takes_blocks_as_one_operation(cap: float | None, num_heads: int, num_kv_heads: int) -> None:
    """Without a break in the graph, whatever the documents, and with the same gradients."""
    q, k, v = heads(num_heads, num_kv_heads)

    def loss(q: Tensor, k: Tensor, v: Tensor, first: Tensor) -> Tensor:
        out = attend_documents(q * 2, k, v, first, cap, 0.3)
        return (out.view(B * S, -1) ** 2).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True)
    for segments in (packed(), torch.ones(B, S)):
        first = first_keys(segments, None)
        ours = torch.autograd.grad(compiled(q, k, v, first), (q, k, v))
        for got, want in zip(ours, torch.autograd.grad(loss(q, k, v, first), (q, k, v)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_is_the_formula_written_out(cap: float | None) -> None:
    q, k, v = heads(4, 2)
    mask = visible(packed(), 6, WholeRows())
    out = reference(packed(), 6, WholeRows())(q, k, v, cap, 0.5)
    for b, s, n in [(0, 0, 0), (0, 9, 3), (0, 25, 1), (0, 36, 2), (1, 36, 3)]:
        keys = mask[b, s].nonzero()[:, 0]
        scores = (k[b, keys, n // 2] @ q[b, s, n]) * 0.5
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        expected = scores.softmax(0) @ v[b, keys, n // 2]
        torch.testing.assert_close(out[b, s, n], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["reference", "sdpa", "documents"])
@pytest.mark.parametrize("cap", [None, 50.0])
def test_padding_yields_no_nan(kernel: str, cap: float | None) -> None:
    q, k, v = heads(4, 1, torch.bfloat16)
    segments = torch.zeros(B, S, dtype=torch.int32)
    out = KERNELS[kernel](segments, 3, WholeRows())(q, k, v, cap, 1.0)
    out.float().sum().backward()
    assert out.isfinite().all()
    assert q.grad is not None
    assert q.grad.isfinite().all()


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1)).unbind(0)

    def score(query: int, key: int) -> float:
        at = [rope_tables(torch.tensor([[n]]), 16, 10_000.0, 1.0) for n in (query, key)]
        return (rotate(q, *at[0]) * rotate(k, *at[1])).sum().item()

    assert score(5, 2) == pytest.approx(score(1005, 1002), rel=1e-3)
    assert score(5, 2) != pytest.approx(score(5, 3), rel=1e-3)


def test_bf16_positions_do_not_collapse() -> None:
    """Neighbouring positions beyond 256 still rotate differently when activations are bfloat16."""
    x = torch.ones(1, 2, 1, 16, dtype=torch.bfloat16)
    turned = rotate(x, *rope_tables(torch.tensor([[4000, 4001]]), 16, 10_000.0, 1.0))
    assert turned.dtype == torch.bfloat16
    assert not torch.equal(turned[:, 0], turned[:, 1])


def test_norm_adds_one_in_float32() -> None:
    """1 + 0.001 is 1 in bfloat16; over many values the difference must survive in the mean."""
    norm = RMSNorm(4096, 1e-6).bfloat16()
    torch.nn.init.constant_(norm.weight, 0.0019)
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.float() * torch.rsqrt(x.float().square().mean() + 1e-6) * (1 + norm.weight.float())
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())

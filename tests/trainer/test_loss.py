"""The chunked loss against the plain formula, with gradients, and its promise on memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from trainer.model import loss as loss_module
from trainer.model.loss import chunk_loss, fusible_chunk_loss, token_loss

R, D, V = 45, 16, 130


def inputs(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(R, D, generator=generator).to(dtype).requires_grad_()
    embedding = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (R,), generator=generator)
    weights = torch.rand(R, generator=generator) * (torch.arange(R) % 4 > 0)
    return x, embedding, targets, weights


def plain(x, embedding, targets, weights, cap, z_loss):
    logits = x.double() @ embedding.double().T
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    log_z = logits.logsumexp(-1)
    return (weights * (F.cross_entropy(logits, targets, reduction="none") + z_loss * log_z**2)).sum()


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize(("chunk", "words"), [(7, 130), (45, 9), (512, 1000)])
def test_the_chunked_loss_is_the_plain_formula(monkeypatch, cap, z_loss, chunk, words) -> None:
    monkeypatch.setattr(loss_module, "PART", {"cpu": words * D})
    monkeypatch.setattr(loss_module, "LEAST_ROWS", chunk)
    monkeypatch.setattr(loss_module, "CHUNK", 0)
    x, embedding, targets, weights = inputs()
    ours = token_loss(x, embedding, targets, weights, cap, z_loss)
    expected = plain(x, embedding, targets, weights, cap, z_loss)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    # a factor after the loss, as an average over the batch puts there, reaches every gradient
    for got, want in zip(
        torch.autograd.grad(ours / 17, (x, embedding)), torch.autograd.grad(expected / 17, (x, embedding)), strict=True
    ):
        assert (got - want).norm() <= 1e-6 * want.norm()


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_loss_is_the_same(cap, dtype) -> None:
    """But for the order of sums: in bfloat16 a gradient may round to the neighbour."""
    results = []
    for chunk in (chunk_loss, torch.compile(fusible_chunk_loss)):
        x, embedding, targets, weights = inputs(dtype)
        loss = token_loss(x, embedding, targets, weights, cap, 0.01, chunk)
        loss.backward()
        results.append((loss.detach(), x.grad, embedding.grad))
    (loss, *gradients), (compiled, *compiled_gradients) = results
    assert compiled.item() == pytest.approx(loss.item(), rel=1e-6)
    for got, want in zip(compiled_gradients, gradients, strict=True):
        assert (got - want).norm() <= (1e-6 if dtype == torch.float32 else 2**-8) * want.norm()


@pytest.mark.parametrize("cap", [None, 30.0])
def test_bf16_loss_sums_in_float32(cap) -> None:
    x, embedding, targets, weights = inputs(torch.bfloat16)
    ours = token_loss(x, embedding, targets, weights, cap, 0.0)
    expected = plain(x, embedding, targets, weights, cap, 0.0)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(expected.item(), rel=2**-8)
    ours.backward()
    assert x.grad.dtype == embedding.grad.dtype == torch.bfloat16
    want = torch.autograd.grad(expected, (x, embedding))
    assert (x.grad.float() - want[0].float()).norm() <= 2**-6 * want[0].float().norm()
    assert (embedding.grad.float() - want[1].float()).norm() <= 2**-6 * want[1].float().norm()


@pytest.mark.parametrize("tokens", [65278, 8222, 65536])
def test_bf16_gradients_of_an_average_are_as_long_as_those_of_the_sum(tokens: int) -> None:
    """A factor rounded to bfloat16, or a gradient rounded twice, would make all of them longer by up to 0.4 %."""
    x, embedding, targets, weights = inputs(torch.bfloat16)
    exact = torch.autograd.grad(plain(x, embedding, targets, weights, None, 0.0), x)[0].double()
    ours, whole = (
        torch.autograd.grad(token_loss(x, embedding, targets, share, None, 0.0), x)[0].double()
        for share in (weights / tokens, weights)
    )
    longer = (ours * tokens * exact).sum() / (whole * exact).sum() - 1
    assert abs(longer) <= 2**-10  # half of what one rounding may be: those of 720 values average out


def test_a_position_of_weight_zero_leaves_no_trace() -> None:
    x, embedding, targets, weights = inputs()
    token_loss(x, embedding, targets, weights, None, 0.1).backward()
    assert (x.grad[weights == 0] == 0).all()
    assert (x.grad[weights > 0] != 0).any(dim=1).all()


def test_without_gradients_the_loss_is_the_same() -> None:
    x, embedding, targets, weights = inputs()
    with torch.no_grad():
        silent = token_loss(x, embedding, targets, weights, 3.0, 0.0)
    assert torch.equal(silent, token_loss(x, embedding, targets, weights, 3.0, 0.0).detach())


def test_an_embedding_that_is_not_trained_gets_no_gradient() -> None:
    x, embedding, targets, weights = inputs()
    token_loss(x, embedding.detach(), targets, weights, None, 0.0).backward()
    expected = torch.autograd.grad(plain(x, embedding, targets, weights, None, 0.0), x)[0]
    assert (x.grad - expected).norm() <= 1e-6 * expected.norm()


def test_extreme_logits_stay_finite() -> None:
    x, embedding, targets, weights = inputs()
    loss = token_loss(x * 1e4, embedding, targets, weights, None, 0.0)
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_all_logits_never_exist_at_once(monkeypatch) -> None:
    """No tensor as large as tokens times vocabulary is made, forward or backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    monkeypatch.setattr(loss_module, "CHUNK", 0)
    tokens, vocabulary = 4 * loss_module.LEAST_ROWS, 300
    x = torch.randn(tokens, 8, requires_grad=True)
    embedding = torch.randn(vocabulary, 8, requires_grad=True)
    with Largest() as largest:
        token_loss(x, embedding, torch.zeros(tokens, dtype=torch.long), torch.ones(tokens), 30.0, 0.1).backward()
    assert largest.elements == loss_module.LEAST_ROWS * vocabulary

"""The summed loss of tokens under a tied output embedding, without ever holding all logits.

With 262,144 words the logits of 8,192 tokens are 8 GiB in float32, several times more with their gradient. Rows are
taken in chunks instead, and a chunk's gradient is computed while its logits exist: three matrix products, none repeated
in the backward pass. The product that is the embedding's gradient is taken some words at a time, so that what is added
to the sum needs little memory, and on a processor is added while it lies in the cache. Knows nothing but tensors.

Shape suffixes: R tokens (rows of all batches, flat), C tokens of a chunk, D width, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST_ROWS = 512  # of a chunk; enough to keep matrix units busy: 0.5 GiB of float32 logits at the largest vocabulary
CHUNK = 2**25  # logits of a chunk where that is more rows; fewer chunks are fewer sums of the embedding's gradient

PART = {"cpu": 2**21}  # numbers of a gradient that are computed together, by device
OTHER_PART = 2**26

Chunk = Callable[[Tensor, Tensor, Tensor, float | None, float], Tensor]
"""What `chunk_loss` and `fusible_chunk_loss` are."""


def chunk_loss(logits_CV: Tensor, targets_C1: Tensor, weights_C1: Tensor, cap: float | None, z_loss: float) -> Tensor:
    """The summed loss of a chunk, a float32 scalar; its gradient takes the place of the logits, rounded once."""
    values_CV = logits_CV.float()  # the logits themselves where they are float32
    if cap is not None:
        tanh_CV = values_CV.div_(cap).tanh()
        torch.mul(tanh_CV, cap, out=values_CV)
    target_C1, largest_C1 = values_CV.gather(1, targets_C1), values_CV.amax(dim=1, keepdim=True)
    sum_C1 = values_CV.sub_(largest_C1).exp_().sum(dim=1, keepdim=True)
    log_z_C1 = sum_C1.log() + largest_C1
    loss = (weights_C1 * (log_z_C1 - target_C1 + z_loss * log_z_C1.square())).sum()
    # d loss / d logit = weight * (p * (1 + 2 z_loss log Z) - [is target])
    values_CV.mul_(weights_C1 * (1 + 2 * z_loss * log_z_C1) / sum_C1)
    values_CV.scatter_add_(1, targets_C1, -weights_C1)
    if cap is not None:
        values_CV.mul_(tanh_CV.square_().neg_().add_(1))
    if values_CV is not logits_CV:
        logits_CV.copy_(values_CV)
    return loss


def fusible_chunk_loss(
    logits_CV: Tensor, targets_C1: Tensor, weights_C1: Tensor, cap: float | None, z_loss: float
) -> Tensor:
    """`chunk_loss` for a compiler, which makes it passes over the logits that, without a cap, put nothing of their size
    in memory, and with one its tanh.

    Exponentials are formed twice for that, and the target is found by comparison. As it is written it would hold
    several copies of the logits.
    """
    values_CV = logits_CV.float()
    if cap is not None:
        tanh_CV = (values_CV / cap).tanh()
        values_CV = tanh_CV * cap
    target_C1, log_z_C1 = values_CV.gather(1, targets_C1), values_CV.logsumexp(dim=1, keepdim=True)
    loss = (weights_C1 * (log_z_C1 - target_C1 + z_loss * log_z_C1.square())).sum()
    is_target_CV = torch.arange(values_CV.shape[1], device=values_CV.device) == targets_C1
    share_CV = (values_CV - log_z_C1).exp() * (weights_C1 * (1 + 2 * z_loss * log_z_C1))
    grad_CV = share_CV - torch.where(is_target_CV, weights_C1, 0.0)
    if cap is not None:
        grad_CV = grad_CV * (1 - tanh_CV.square())
    logits_CV.copy_(grad_CV)
    return loss


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, float | None, float], Tensor]
"""What `token_loss` is."""


def token_loss(
    x_D: Tensor,
    embedding_VD: Tensor,
    targets: Tensor,
    weights: Tensor,
    cap: float | None,
    z_loss: float,
    chunk: Chunk = chunk_loss,
) -> Tensor:
    """Sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2), a float32 scalar.

    Logits are x @ embedding^T, soft-capped where `cap` is set, and Z is the sum of their exponentials (z-loss: PaLM,
    arXiv 2204.02311 section 5). Differentiable in x and embedding, once.

    Args:
        x_D: [..., D], one vector for each of `targets` and `weights`, which have the shape [...].
    """
    x_RD, targets_R, weights_R = x_D.flatten(0, -2), targets.flatten(), weights.flatten().float()
    loss: Tensor = _TokenLoss.apply(x_RD, embedding_VD, targets_R, weights_R, cap, z_loss, chunk)
    return loss


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        embedding_VD: Tensor,
        targets_R: Tensor,
        weights_R: Tensor,
        cap: float | None,
        z_loss: float,
        chunk: Chunk,
    ) -> Tensor:
        needs_x, needs_embedding = ctx.needs_input_grad[:2]
        loss = torch.zeros((), dtype=torch.float32, device=x_RD.device)
        grad_x_RD = torch.empty_like(x_RD) if needs_x else None
        grad_embedding_VD = torch.zeros_like(embedding_VD, dtype=torch.float32) if needs_embedding else None
        V = embedding_VD.shape[0]
        rows = max(LEAST_ROWS, CHUNK // V)
        logits = x_RD.new_empty((min(rows, x_RD.shape[0]), V))  # of all chunks in turn
        for start in range(0, x_RD.shape[0], rows):
            now = slice(start, start + rows)
            x_CD = x_RD[now]
            product_CV = torch.mm(x_CD, embedding_VD.T, out=logits[: len(x_CD)])
            loss += chunk(product_CV, targets_R[now, None], weights_R[now, None], cap, z_loss)
            if grad_x_RD is not None:
                torch.mm(product_CV, embedding_VD, out=grad_x_RD[now])
            if grad_embedding_VD is not None:
                for words in _parts(embedding_VD):
                    grad_embedding_VD[words] += product_CV[:, words].T @ x_CD
        ctx.save_for_backward(grad_x_RD, grad_embedding_VD)
        ctx.embedding_dtype = embedding_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_RD, grad_embedding_VD = ctx.saved_tensors
        # Multiplied in float32: a factor rounded to bfloat16 would scale every gradient by up to 0.4 %. Even so, what
        # is rounded already is rounded again: give weights their factor instead.
        grad_x = None if grad_x_RD is None else _scaled(grad_x_RD, grad, grad_x_RD.dtype)
        grad_embedding = None
        if grad_embedding_VD is not None:
            grad_embedding = _scaled(grad_embedding_VD, grad, ctx.embedding_dtype)
        return grad_x, grad_embedding, None, None, None, None, None


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    scaled = torch.empty_like(gradient, dtype=dtype)
    for part in _parts(gradient):
        scaled[part] = gradient[part].float() * factor
    return scaled


def _parts(gradient: Tensor) -> Iterator[slice]:
    """Rows of a gradient, of x or of the embedding, that are computed together."""
    rows = max(1, PART.get(gradient.device.type, OTHER_PART) // gradient.shape[1])
    return (slice(start, start + rows) for start in range(0, gradient.shape[0], rows))

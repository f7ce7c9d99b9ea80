"""The summed loss of tokens under a tied output embedding, without ever holding all logits.

With 262,144 words the logits of 8,192 tokens are 8 GiB in float32, several times more with their gradient. Rows are
taken in chunks instead, and a chunk's gradient is computed while its logits exist: three matrix products, none repeated
in the backward pass. Knows nothing but tensors.

Shape suffixes: R tokens (rows of all batches, flat), C tokens of a chunk, D width, V words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512  # tokens; enough to keep matrix units busy, and 0.5 GiB of float32 logits at the largest vocabulary


def token_loss(
    x_RD: Tensor, embedding_VD: Tensor, targets_R: Tensor, weights_R: Tensor, cap: float | None, z_loss: float
) -> Tensor:
    """Sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2), a float32 scalar.

    Logits are x @ embedding^T, soft-capped where `cap` is set, and Z is the sum of their exponentials (z-loss: PaLM,
    arXiv 2204.02311 section 5). Differentiable in x and embedding, once.
    """
    loss: Tensor = _TokenLoss.apply(x_RD, embedding_VD, targets_R, weights_R.float(), cap, z_loss)
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
    ) -> Tensor:
        needs_x, needs_embedding = ctx.needs_input_grad[:2]
        loss = torch.zeros((), dtype=torch.float32, device=x_RD.device)
        grad_x_RD = torch.empty_like(x_RD) if needs_x else None
        # A float32 sum over chunks, rounded to the embedding's dtype once.
        grad_embedding_VD = torch.zeros_like(embedding_VD, dtype=torch.float32) if needs_embedding else None
        # Buffers that all chunks share and change in place: on a processor, fresh ones would cost more than the sums.
        shape = (min(CHUNK, x_RD.shape[0]), embedding_VD.shape[0])
        product = x_RD.new_empty(shape)
        rounded = product.dtype != torch.float32  # then logits are worked on in a buffer of their own
        float32 = torch.empty_like(product, dtype=torch.float32) if rounded else product
        tanh = None if cap is None else torch.empty_like(float32)
        for start in range(0, x_RD.shape[0], CHUNK):
            chunk = slice(start, start + CHUNK)
            x_CD, targets_C1, weights_C1 = x_RD[chunk], targets_R[chunk, None], weights_R[chunk, None]
            product_CV, values_CV = product[: len(x_CD)], float32[: len(x_CD)]
            torch.mm(x_CD, embedding_VD.T, out=product_CV)
            if rounded:
                values_CV.copy_(product_CV)
            if tanh is not None and cap is not None:
                tanh_CV = torch.tanh(values_CV.div_(cap), out=tanh[: len(x_CD)])
                torch.mul(tanh_CV, cap, out=values_CV)
            target_C1, largest_C1 = values_CV.gather(1, targets_C1), values_CV.amax(dim=1, keepdim=True)
            sum_C1 = values_CV.sub_(largest_C1).exp_().sum(dim=1, keepdim=True)
            log_z_C1 = sum_C1.log() + largest_C1
            loss += (weights_C1 * (log_z_C1 - target_C1 + z_loss * log_z_C1.square())).sum()
            if not (needs_x or needs_embedding):
                continue
            # d loss / d logit = weight * (p * (1 + 2 z_loss log Z) - [is target])
            values_CV.mul_(weights_C1 * (1 + 2 * z_loss * log_z_C1) / sum_C1)
            values_CV.scatter_add_(1, targets_C1, -weights_C1)
            if tanh is not None:
                values_CV.mul_(tanh_CV.square_().neg_().add_(1))
            if rounded:
                product_CV.copy_(values_CV)
            if grad_x_RD is not None:
                torch.mm(product_CV, embedding_VD, out=grad_x_RD[chunk])
            if grad_embedding_VD is not None:
                grad_embedding_VD += product_CV.T @ x_CD
        ctx.save_for_backward(grad_x_RD, grad_embedding_VD)
        ctx.embedding_dtype = embedding_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_RD, grad_embedding_VD = ctx.saved_tensors
        grad_x = None if grad_x_RD is None else grad_x_RD * grad.to(grad_x_RD.dtype)
        grad_embedding = None if grad_embedding_VD is None else (grad_embedding_VD * grad).to(ctx.embedding_dtype)
        return grad_x, grad_embedding, None, None, None, None

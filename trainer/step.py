"""One optimizer update, from micro-batches to metrics. Knows no file, logger or device."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from data_pipeline.batch import Batch
from trainer.backend import Backend
from trainer.model import Gemma
from trainer.optim.optimizer import skip_where
from trainer.sharded import first_copy, own_part

TrainStep = Callable[..., dict[str, Tensor]]


def make_train_step(
    model: Gemma,
    optimizer: Optimizer,
    clip_norm: float,
    z_loss: float,
    backend: Backend,
    checked: Callable[[Callable[[], Tensor]], Tensor] = operator.call,
) -> TrainStep:
    """The update as a function of the micro-batches of one step, and of limits: [2] float32, or None for none.

    `checked` is handed what computes this process's share of loss and gradients, and gives what that gives.

    The update returns, on the device and equal on every process: `loss` (nats per token of the global batch, z-loss
    included), `grad_norm` (before clipping), `skipped` (1 where one of these is not finite or above its limit, else 0),
    `tokens` (targets that counted) and `counts_K` (the sum of `Batch.counts_K`).

    A step that is skipped leaves parameters and the optimizer's state as they were. The device decides that: the host
    goes on with the next step before it could know.
    """

    def train_step(micro_batches: Sequence[Batch], limits: Tensor | None = None) -> dict[str, Tensor]:
        # Divided by the weight of the *global* batch before backward: the gradient is then the same however documents
        # were packed and however many processes share the work. Weights are divided and not their loss: its gradient,
        # once rounded to bfloat16, would be rounded again, and two roundings lean to one side.
        tokens = backend.total(torch.stack([batch.weights_BS.sum() for batch in micro_batches]).sum())
        counts_K = backend.total(torch.stack([batch.counts_K for batch in micro_batches]).sum(0))
        shares = [
            dataclasses.replace(batch, weights_BS=batch.weights_BS / tokens.clamp(min=1))  # a step may have no tokens
            for batch in micro_batches
        ]
        accumulate = functools.partial(backend.accumulate, lambda batch: loss_of(model, batch, z_loss), shares)
        loss = backend.total(checked(accumulate))
        grad_norm = clip_gradients(model, clip_norm, backend)
        # Both are totals: all processes decide alike. The norm is where the masters are, and so is what is decided.
        judged = loss.to(grad_norm.device), grad_norm
        sound = judged[0].isfinite() & judged[1].isfinite()
        if limits is not None:
            sound = sound & (torch.stack(judged) <= limits.to(grad_norm.device)).all()
        skipped = (~sound).float()
        skip_where(optimizer, skipped)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": grad_norm, "skipped": skipped, "tokens": tokens, "counts_K": counts_K}

    return train_step


def loss_of(model: Gemma, batch: Batch, z_loss: float = 0.0) -> Tensor:
    """The summed loss of this process's rows, in nats."""
    loss = model(
        batch.tokens_BS, batch.segments_BS, batch.positions_BS, batch.targets_BS, batch.weights_BS, z_loss=z_loss
    )
    assert isinstance(loss, Tensor)
    return loss


def clip_gradients(model: Gemma, clip_norm: float, backend: Backend) -> Tensor:
    """Scale all gradients so that their global norm is at most `clip_norm`; returns the norm before.

    Their meshes may differ, which `torch.nn.utils.clip_grad_norm_` refuses.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    own = [own_part(gradient) for gradient in gradients]
    # Each process adds the squares of the parts it holds, tensor by tensor, but for copies of what another one adds.
    norms = torch._foreach_mul(torch._foreach_norm(own), [float(first_copy(gradient)) for gradient in gradients])
    norm = torch.linalg.vector_norm(backend.total(torch.stack(norms).square()).sqrt())
    torch._foreach_mul_(own, (clip_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm

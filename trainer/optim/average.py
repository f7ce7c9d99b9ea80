"""An average of the weights over the last updates, which often scores better than the last weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.model import Gemma
from trainer.model.gemma import bare_name
from trainer.sharded import own_part


class Average:
    """Exponential moving average of every parameter, in float32 and sharded as they are.

    After update t (1, 2, ...) it moves towards the parameters by 1 - min(decay, (1 + t) / (10 + t)), so that it forgets
    the initial weights soon (as `tf.train.ExponentialMovingAverage` with `num_updates`). `tensors` by parameter name.
    """

    def __init__(self, model: Gemma, decay: float, zeros_like: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
        self._decay = decay
        self.tensors: dict[str, Tensor] = {
            bare_name(name): zeros_like(parameter) for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def start(self, model: Gemma) -> None:
        """Begin with the parameters as they are."""
        for name, parameter in model.named_parameters():
            # A product, as XLA would let a mere copy share the parameter's memory, which could then not be reused.
            self.tensors[bare_name(name)].copy_(parameter * 1)

    def share(self, step: int) -> Tensor:
        """How far the average moves towards the parameters after update number `step`, [1] on the host."""
        return torch.tensor([1 - min(self._decay, (1 + step) / (10 + step))])

    @torch.no_grad()
    def update(self, model: Gemma, skipped: Tensor, share: Tensor) -> None:
        """Follow an update as far as `share` says, on the device; where `skipped` is 1, nothing moves."""
        for name, parameter in model.named_parameters():
            average = own_part(self.tensors[bare_name(name)])
            moved = average.lerp(own_part(parameter), share[0])
            average.copy_(torch.where(skipped > 0, average, moved))

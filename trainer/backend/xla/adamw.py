"""AdamW in plain tensor operations, which XLA fuses; what it decides, it decides on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conf import schema


class AdamW(torch.optim.Optimizer):
    """Loshchilov and Hutter, arXiv 1711.05101, as torch computes it; `found_inf`, a scalar, leaves all as it was at 1.

    The learning rate may change from step to step; everything else is part of the program.
    """

    def __init__(
        self,
        groups: Sequence[tuple[list[torch.nn.Parameter], float]],
        optim: schema.Optim,
        zeros_like: Callable[[Tensor], Tensor],
    ) -> None:
        betas = {"betas": (optim.beta1, optim.beta2), "eps": optim.eps, "lr": optim.peak_lr}
        super().__init__([{"params": list(own), "weight_decay": decay} for own, decay in groups if own], betas)
        self.found_inf: Tensor | None = None
        for own, _ in groups:
            for parameter in own:
                moments = {moment: zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": zeros_like(parameter.new_empty(())), **moments}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update with the gradients as they are."""
        for group in self.param_groups:
            rate = self._on_device(group["lr"], group["params"][0].device)
            (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                count = state["step"] + 1
                mean = beta1 * state["exp_avg"] + (1 - beta1) * gradient
                square = beta2 * state["exp_avg_sq"] + (1 - beta2) * gradient * gradient
                root = square.sqrt() / (1 - beta2**count).sqrt() + eps
                moved = parameter * (1 - rate * decay) - rate / (1 - beta1**count) * mean / root
                self._replace(state["step"], count)
                self._replace(state["exp_avg"], mean)
                self._replace(state["exp_avg_sq"], square)
                self._replace(parameter, moved)

    def _on_device(self, number: float, device: torch.device) -> Tensor:
        """An input of the program: torch_xla makes what has no dimensions a part of it."""
        return torch.tensor([number], dtype=torch.float32).to(device)[0]

    def _replace(self, old: Tensor, new: Tensor) -> None:
        old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))

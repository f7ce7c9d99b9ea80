"""Muon for the matrices of blocks and AdamW for all else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from trainer.sharded import WholeMatrices, own_part

# The post's polynomial: its slope at 0 is what brings small singular values up in few iterations.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, of which each matrix is made nearly orthogonal before it is subtracted.

    K. Jordan and others, https://kellerjordan.github.io/posts/muon/, with Nesterov momentum. The factor
    0.2 sqrt(max(rows, columns)) of Moonlight (arXiv 2502.16982, section 2.2) gives an update the size that AdamW's has,
    so that learning rate and weight decay carry over.

    A matrix is made orthogonal whole, however processes share it: each works on some of the matrices
    (`WholeMatrices`), so that neither the work nor the memory grows with the number of processes.

    `found_inf` is what `skip_where` sets. State of a matrix is `momentum`; that of the rest is AdamW's.
    """

    def __init__(
        self,
        matrices: Sequence[torch.nn.Parameter],
        rest: torch.optim.Optimizer,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        dtype: torch.dtype,
    ) -> None:
        """`rest` updates all other parameters; `dtype` is that of the matrix products."""
        super().__init__([{"params": matrices}], {"lr": lr, "weight_decay": weight_decay})
        self._momentum, self._orthogonal = momentum, partial(orthogonal, dtype=dtype)
        self._whole = WholeMatrices(matrices)
        for parameter in matrices:
            self.state[parameter] = {"momentum": torch.zeros_like(parameter, requires_grad=False)}
        self._matrices, self._rest = self.param_groups[0], rest
        self.param_groups += rest.param_groups  # the same, not copies: who sets the learning rate sets it for both
        self.state.update(rest.state)
        rest.state = self.state
        self.found_inf = torch.zeros((), device=matrices[0].device)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter from its gradient."""
        assert closure is None
        self._rest.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._rest.step()
        skipped = self.found_inf > 0
        parameters, lr = self._matrices["params"], self._matrices["lr"]
        ahead = []
        for parameter in parameters:
            gradient, momentum = own_part(parameter.grad), own_part(self.state[parameter]["momentum"])
            moved = momentum.lerp(gradient, 1 - self._momentum)
            ahead.append(gradient.lerp(moved, self._momentum))
            momentum.copy_(torch.where(skipped, momentum, moved))
        for parameter, direction in zip(parameters, self._whole.each(self._orthogonal, ahead), strict=True):
            part, scale = own_part(parameter), 0.2 * math.sqrt(max(parameter.shape))
            moved = (part * (1 - lr * self._matrices["weight_decay"])).add_(direction, alpha=-lr * scale)
            part.copy_(torch.where(skipped, part, moved))


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix with the singular vectors of this one and singular values near 1 (about 0.7 to 1.2), in float32.

    A Newton-Schulz iteration: products of matrices, computed in `dtype`, and nothing else.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if tall else x).float()

"""A copy in host memory of what a process is to write, so that training goes on meanwhile."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.checkpoint.parts import Held, Holding, holding
from trainer.sharded import Parted


class Snapshot:
    """One copy at a time, in memory that the next one uses again: taking that anew each time costs as much as copying.

    From a GPU the copy goes to page-locked memory, which the device writes by itself.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor | Parted], first: bool) -> Holding:
        """What `holding` says, as it is now. What was taken before is no longer to be used."""
        live = holding(tensors, first)
        # Parts of a `Parted` are copies already.
        parts = [part if isinstance(tensors[part.tensor], Parted) else self._copy(part) for part in live.parts]
        if any(part.values.is_cuda for part in live.parts):
            torch.cuda.synchronize()
        return Holding(live.tensors, parts)

    def _copy(self, part: Held) -> Held:
        key, values = (part.tensor, tuple(part.offset)), part.values
        if key not in self._memory:
            self._memory[key] = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        return dataclasses.replace(part, values=self._memory[key].copy_(values, non_blocking=True))

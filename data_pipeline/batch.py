"""The one type that data pipeline and trainer share: a batch that carries the cursor that follows it.

Shape suffixes: B rows, S positions per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cursor:
    """Where the order of samples stands after a finished step.

    `samples_done` counts rows of global batches; `manifest` and `order` are sha256 digests of the shard manifest and of
    everything else the order depends on, so that a cursor can never be applied to another order.
    """

    samples_done: int
    manifest: str
    order: str


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, fixed shapes.

    tokens_BS     int64    inputs
    targets_BS    int64    the token that follows each input within its document
    segments_BS   int32    1, 2, ... numbers the documents of a row; 0 is padding
    positions_BS  int32    distance from the start of the segment
    weights_BS    float32  1 where the target counts in the loss, else 0
    cursor        what to resume from once the step that used this batch is done
    """

    tokens_BS: Tensor
    targets_BS: Tensor
    segments_BS: Tensor
    positions_BS: Tensor
    weights_BS: Tensor
    cursor: Cursor

    def to(self, device: torch.device) -> Batch:
        """This batch on a device; the copy overlaps computation where the tensors are pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """This batch in page-locked memory, from which a GPU copies by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            tokens_BS=change(self.tokens_BS),
            targets_BS=change(self.targets_BS),
            segments_BS=change(self.segments_BS),
            positions_BS=change(self.positions_BS),
            weights_BS=change(self.weights_BS),
            cursor=self.cursor,
        )

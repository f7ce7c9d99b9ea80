"""The one type that data pipeline and trainer share: a batch that carries the cursor that follows it.

Shape suffixes: B rows, S positions per row, N ends of sequences, K counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cursor:
    """Where the order of samples stands after a finished step.

    `samples_done` counts rows of global batches, those that were passed over included. The rest are sha256 digests of
    all that the order depends on, so that a cursor can never be applied to another order: of the shard manifest, of
    seed and packing, and of the stages of the mixture and the skips that had a part in the samples done.
    """

    samples_done: int
    manifest: str
    order: str
    mixture: str
    skips: str


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, fixed shapes.

    tokens_BS     int64    inputs
    targets_BS    int64    the token that follows each input within its document
    segments_BS   int32    1, 2, ... numbers the documents of a row; 0 is padding
    positions_BS  int32    distance from the start of the segment
    weights_BS    float32  1 where the target counts in the loss, else 0
    cu_seqlens_N  int32    for kernels of variable length, which see the rows end to end as B x S positions: where each
                           segment begins, and the padding of each row as one more; then B x S up to a fixed length
    longest       of these sequences, in positions
    counts_K      int64    what adds up over all batches; `TokenStream.count_names` says of what
    cursor        what to resume from once the step that used this batch is done
    """

    tokens_BS: Tensor
    targets_BS: Tensor
    segments_BS: Tensor
    positions_BS: Tensor
    weights_BS: Tensor
    cu_seqlens_N: Tensor
    longest: int
    counts_K: Tensor
    cursor: Cursor

    def to(self, device: torch.device) -> Batch:
        """This batch on a device; the copy overlaps computation where the tensors are pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """This batch in page-locked memory, from which a GPU copies by itself."""
        return self._each(Tensor.pin_memory)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the batch."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **changed)

"""The seam for devices: all that training needs to know of where it runs.

Chosen once, in `trainer.backend.choose`; nothing else asks what the device is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from trainer.model import Gemma, GemmaConfig


@dataclass(frozen=True)
class World:
    """Some of the processes: this one's number among them and how many there are."""

    rank: int
    size: int


class Backend(Protocol):
    """Where and how a model runs.

    device     where batches and parameters live
    processes  all of them
    world      the feeders of batches: processes that share the positions of rows read the same ones, and count as one
    """

    device: torch.device
    processes: World
    world: World

    def problems(self, config: GemmaConfig) -> list[str]:
        """Why processes cannot share such a model as the job asks; empty where they can."""

    def shard(self, model: Gemma) -> None:
        """Spread a model made on `meta` over the processes, in place; its parameters then have memory but no values."""

    def feed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches on the device, each narrowed to the positions that this process computes."""

    def release(self, model: Gemma) -> None:
        """Give back what a forward pass without a backward pass leaves gathered."""

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""

    def barrier(self) -> None:
        """Wait until every process is here."""

    def memory_bytes(self) -> int:
        """Most memory this process has held: of the device, or resident where the device is the host."""

    def peak_flops(self) -> float | None:
        """Peak FLOP/s of one device in the compute precision; None where it is not known."""

    def close(self) -> None:
        """Leave the process group."""

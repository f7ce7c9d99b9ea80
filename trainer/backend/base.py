"""The seam for devices: all that training needs to know of where it runs.

Chosen once, in `trainer.backend.choose`; nothing else asks what the device is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.distributed import Store

from conf import schema
from data_pipeline.batch import Batch
from trainer.model import Gemma, GemmaConfig
from trainer.optim.optimizer import Groups
from trainer.sharded import Parted

# Beyond the deadline of a hang, in seconds: the watch, which knows who did not arrive, speaks before the process group.
GROUP_SLACK = 60.0

Compiled = TypeVar("Compiled", bound=Callable[..., Any])


@dataclass(frozen=True)
class World:
    """Some of the processes: this one's number among them and how many there are."""

    rank: int
    size: int


class Backend(Protocol):
    """Where and how a model runs.

    device     where batches and parameters live
    devices    that compute, of all processes
    processes  all of them
    world      those that read batches: processes that share the positions of rows read the same ones, and count as one
    feeders    feeders that each of these reads for; a feeder takes `micro_batch` rows a pass
    compiles   whether the first step waits for a compiler
    store      keys and values that all processes see; other threads use a clone of it
    """

    device: torch.device
    devices: int
    processes: World
    world: World
    feeders: int
    compiles: bool
    store: Store

    def problems(self, config: GemmaConfig) -> list[str]:
        """Why processes cannot share such a model as the job asks; empty where they can."""

    def shard(self, model: Gemma) -> None:
        """Spread a model made on `meta` over the processes, in place; its parameters then have memory but no values."""

    def zeros_like(self, parameter: Tensor) -> Tensor:
        """Zeros of a parameter's shape, spread as it is, for what is kept beside it."""

    def adamw(self, groups: Groups, optim: schema.Optim) -> torch.optim.Optimizer:
        """AdamW on parameters by their weight decay, its moments made; leaves all alone where `found_inf` is 1."""

    def named(self, name: str, tensor: Tensor) -> Mapping[str, Tensor | Parted]:
        """What a checkpoint knows a parameter by, or what has the shape of one: names that no wrapper changes."""

    def compile(self, function: Compiled) -> Compiled:
        """The function as something to call again and again, with tensors of the same shapes.

        What it gives are tensors that are there, or will be without being asked.
        """

    def accumulate(self, loss_of: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Tensor:
        """The sum of the losses of some batches; their gradients are added to those of the parameters."""

    def feed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches on the device, each narrowed to the positions that this process computes."""

    def release(self, model: Gemma) -> None:
        """Give back what a forward pass without a backward pass leaves gathered."""

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor on the device over all processes."""

    def agree(self, values: Sequence[float]) -> list[float]:
        """The sums of some numbers of the host over all processes, which wait here for each other."""

    def barrier(self) -> None:
        """Wait until every process is here."""

    def memory_bytes(self) -> int | None:
        """Most memory this process has held: of the device, or resident where the device is the host; None: unknown."""

    def peak_flops(self) -> float | None:
        """Peak FLOP/s of one device in the compute precision; None where it is not known."""

    def close(self) -> None:
        """Leave the process group."""

"""Which micro-batches a rank or a worker process builds, and how they are prepared ahead of the trainer.

Knows nothing of what a batch holds. The samples of a step do not depend on who builds them: here they are only shared
out.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conf.exits import ConfigError, DataError
from conf.processes import deafen, end_with, undisturbed
from data_pipeline.batch import Batch
from data_pipeline.ramp import Ramp
from data_pipeline.skips import Skips

PREFETCH = 4  # micro-batches prepared ahead of the trainer, per thread or worker
_ROWS_AT_ONCE = (
    16  # built together, if micro-batches are smaller: much of the cost is per call, and more leaves the cache
)

Item = Batch | ConfigError | DataError


class Builder(Protocol):
    """What makes batches of samples."""

    skips: Skips

    def build(self, wanted: Sequence[tuple[Sequence[int], int]], rows: int) -> list[Batch]:
        """A batch of so many rows for each (samples, samples done)."""


@dataclass(frozen=True)
class Share(IterableDataset):
    """The micro-batches of one rank, or in a worker process of DataLoader every n-th of them, for ever."""

    builder: Builder
    first: int  # sample
    step: int  # that begins there
    ramp: Ramp
    micro_batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        return self.every(worker.num_workers, worker.id) if worker else self.every(1, 0)

    def every(self, stride: int, number: int) -> Iterator[Item]:
        """Micro-batch `number` and each `stride`-th after it.

        The last item may be an error, for the reader to raise: DataLoader would bury it in a worker's traceback.
        """
        at_once = max(1, _ROWS_AT_ONCE // self.micro_batch)
        while True:
            wanted = [self._wanted(number + stride * ahead) for ahead in range(at_once)]
            number += stride * at_once
            try:
                batches = self.builder.build(wanted, self.micro_batch)
            except (ConfigError, DataError) as error:
                yield error
                return
            yield from batches

    def _wanted(self, number: int) -> tuple[Sequence[int], int]:
        """Samples of a micro-batch, and how many samples are done when its step is, or the step before."""
        shared = self.micro_batch * self.world  # samples of a micro-batch of all ranks
        before = self.ramp.before(self.step)
        step, within = self.ramp.find(before + number * shared)
        read, rows = self.ramp.before(step) - before, self.ramp.rows(step)
        samples = next_samples(self.builder.skips, self.builder.skips.advance(self.first, read), rows)
        first = within + self.rank * self.micro_batch
        return samples[first : first + self.micro_batch], self._done(read + rows * (within + shared == rows))

    def _done(self, read: int) -> int:
        """Samples done after so many were read: those before the last of them, it included."""
        return self.builder.skips.advance(self.first, read - 1) + 1 if read else self.first


def next_samples(skips: Skips, first: int, count: int) -> Sequence[int]:
    """So many samples from `first` on, without those that are passed over."""
    stop = skips.advance(first, count)
    if stop - first == count:
        return range(first, stop)
    return [skips.advance(first, number) for number in range(count)]


def prepared(share: Share, workers: int, prefetch: int) -> Generator[Batch]:
    """The batches of a share, made ahead by a thread or by worker processes. Raises the errors among them."""
    return _from_workers(share, workers, prefetch) if workers else _from_thread(share, prefetch)


def settle() -> None:
    """Spare the garbage collector what will stay: libraries hold some hundred thousand objects, and walking through
    them again and again took a quarter of the time of making batches. Even once takes a fifth of a second, for the few
    megabytes of garbage that importing leaves."""
    gc.freeze()
    gc.enable()


def _start_worker(worker: int) -> None:
    settle()
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_with(parent.pid)


def _raise_errors(item: Item) -> Batch:
    if isinstance(item, Exception):
        raise item
    return item


def _from_thread(share: Share, prefetch: int) -> Generator[Batch]:
    items = iter(share)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        ahead = deque(thread.submit(next, items) for _ in range(prefetch))
        while True:
            batch = _raise_errors(ahead.popleft().result())
            ahead.append(thread.submit(next, items))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _from_workers(share: Share, workers: int, prefetch: int) -> Generator[Batch]:
    loader = DataLoader(
        share,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",  # a fork copies locks that threads of the backend or of W&B may hold
        prefetch_factor=prefetch,
        generator=torch.Generator(),  # else it draws a seed from torch's global one, and workers=0 does not
        worker_init_fn=_start_worker,
    )
    # A scheduler or a keyboard signals the whole process group; the trainer needs its workers, and what keeps track of
    # their memory, while it stops. So signals wait in all of them for ever, from their first moment on.
    with undisturbed():
        resource_tracker.ensure_running()  # which lets signals come, here too, as soon as it is started
        deafen()
        items = iter(loader)
    atexit.register(_end_workers)
    try:
        for item in items:
            yield _raise_errors(item)
    finally:
        del items  # which ends the workers: else an error on its way would hold this frame, and they would live on


def _end_workers() -> None:
    """Where this process ends in the midst of batches. What multiprocessing would do is to send its daemons a signal
    that they never hear, and to wait for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()

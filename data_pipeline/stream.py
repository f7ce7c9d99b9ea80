"""Token shards to batches: the stream a trainer reads.

Knows nothing of models or devices. Sample i is the row that `order.py` names, whoever asks: ranks, workers and restarts
only choose which samples they build. A batch carries the cursor that follows it.

Shape suffixes: B rows, S positions per row, N tokens of a window.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conf.exits import ConfigError, DataError
from data_pipeline.batch import Batch, Cursor
from data_pipeline.order import Order, Packing, load_plan, plan_name, window_blocks
from data_pipeline.pack import Row, pack
from data_pipeline.reader import Shards

_PREFETCH = 4  # micro-batches prepared ahead of the trainer, per thread or worker


class Span(NamedTuple):
    """A part of a row: `slots` inputs of a document, from its token `start` on."""

    document: str
    source: str
    start: int
    slots: int


def documents(manifest: str) -> Iterator[tuple[str, np.ndarray]]:
    """(id, tokens) of every document, whole, in the order of the shards; tokens begin with BOS and end with EOS."""
    for block in Shards.open(manifest).blocks():
        yield from block.documents()


class TokenStream:
    """Batches of packed documents from the shards of a manifest.

    Attributes: `shards` (what the manifest says of them), `order` (which sample is which row), `plan`.
    Raises DataError where the shards are missing or broken.
    """

    def __init__(
        self, manifest: str, *, sequence_length: int, packing: str, window_blocks: int, seed: int, workers: int = 0
    ) -> None:
        how = Packing(sequence_length, packing, window_blocks)
        self.shards = Shards.open(manifest)
        self.plan = load_plan(self.shards, how)
        self.order = Order(self.plan.rows, seed, how)
        self.workers = workers
        self._windows: dict[int, _Window] = {}

    @property
    def rows_per_epoch(self) -> int:
        """Samples until every token was seen once."""
        return self.order.rows_per_epoch

    def cursor(self, samples_done: int) -> Cursor:
        """The cursor that stands before sample `samples_done` of this order."""
        return Cursor(samples_done, self.shards.sha256, self.order.sha256)

    def batches(
        self, *, rows_per_step: int, micro_batch: int, rank: int, world: int, start: Cursor | None = None
    ) -> Generator[Batch]:
        """Micro-batches of a rank, for ever.

        A step covers `rows_per_step` samples. Its micro-batch a holds, on rank r, the `micro_batch` samples from
        base + (a * world + r) * micro_batch on, so the samples of a step are the same for every world. The cursor of a
        batch counts finished steps only: it moves with the last micro-batch of a step.

        Raises ConfigError where `start` was taken on other shards or another order.
        """
        if rows_per_step % (micro_batch * world):
            raise ValueError(f"{rows_per_step=} is not a multiple of {micro_batch=} x {world=}")
        if start is not None:
            self._check(start)
        share = _Share(self, start.samples_done if start else 0, rows_per_step, micro_batch, rank, world)
        return _from_workers(share, self.workers) if self.workers else _from_thread(share)

    def epoch(self, *, micro_batch: int, rank: int = 0, world: int = 1, rows: int | None = None) -> Iterator[Batch]:
        """Micro-batches of a rank over the first `rows` samples (default: one epoch), for a loss on held-out text.

        Every rank gets the same number of batches; rows beyond the last sample are empty (segment and weight 0).
        """
        stop = self.rows_per_epoch if rows is None else min(rows, self.rows_per_epoch)
        for base in range(0, stop, micro_batch * world):
            first = base + rank * micro_batch
            yield self._batch(range(first, min(first + micro_batch, stop)), micro_batch, self.cursor(stop))

    def spans(self, sample: int) -> list[Span]:
        """The documents in a sample, in the order of its row."""
        place = self.order.place(sample)
        blocks = list(self.shards.blocks(*window_blocks(self.shards, self.order.how, place.window)))
        ids = [name for block in blocks for name in block.ids]
        sources = [source for block in blocks for source in block.sources]
        row = self._window(place.window).rows[place.row]
        return [Span(ids[piece.document], sources[piece.document], piece.start, piece.slots) for piece in row]

    def _check(self, start: Cursor) -> None:
        here = self.cursor(start.samples_done)
        differences = []
        if start.manifest != here.manifest:
            differences.append(f"the shards (manifest sha256 {start.manifest}, here {here.manifest})")
        if start.order != here.order:
            how = self.order.how
            differences.append(
                f"the order (sha256 {start.order}, here {here.order} of seed={self.order.seed}, "
                f"data.sequence_length={how.sequence_length}, data.packing={how.packing}, "
                f"data.window_blocks={how.window_blocks})"
            )
        if differences:
            raise ConfigError(
                f"cannot resume after {start.samples_done} samples of {self.shards.manifest}: "
                f"{' and '.join(differences)} differ: restore the values the run was started with, or start a new run"
            )

    def _batch(self, samples: range, rows: int, cursor: Cursor) -> Batch:
        shape = (rows, self.order.how.sequence_length)
        tokens_BS, targets_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        segments_BS, positions_BS = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights_BS = np.zeros(shape, np.float32)
        for line, sample in enumerate(samples):
            place = self.order.place(sample)
            window = self._window(place.window)
            slot = 0
            for segment, (document, start, slots) in enumerate(window.rows[place.row], start=1):
                first, here = int(window.starts[document]) + start, slice(slot, slot + slots)
                tokens_BS[line, here] = window.tokens_N[first : first + slots]
                targets_BS[line, here] = window.tokens_N[first + 1 : first + slots + 1]
                segments_BS[line, here] = segment
                positions_BS[line, here] = np.arange(slots)
                slot += slots
            weights_BS[line, :slot] = 1
        return Batch(
            tokens_BS=torch.from_numpy(tokens_BS),
            targets_BS=torch.from_numpy(targets_BS),
            segments_BS=torch.from_numpy(segments_BS),
            positions_BS=torch.from_numpy(positions_BS),
            weights_BS=torch.from_numpy(weights_BS),
            cursor=cursor,
        )

    def _window(self, number: int) -> _Window:
        """A window's tokens and rows. Two are kept, as a micro-batch may lie across the end of one."""
        if window := self._windows.get(number):
            return window
        how = self.order.how
        blocks = list(self.shards.blocks(*window_blocks(self.shards, how, number)))
        lengths = np.concatenate([block.lengths for block in blocks]).astype(np.int64)
        rows = pack(lengths, how.sequence_length, how.packing)
        if len(rows) != self.order.rows[number]:
            raise DataError(
                f"{plan_name(how)} beside {self.shards.manifest} gives window {number} {self.order.rows[number]} "
                f"rows, but its documents fill {len(rows)}: remove the file, it is made again"
            )
        tokens_N = np.concatenate([block.tokens for block in blocks])
        window = _Window(tokens_N, np.cumsum(lengths) - lengths, rows)
        self._windows = dict(list(self._windows.items())[-1:]) | {number: window}
        return window


@dataclass(frozen=True)
class _Window:
    tokens_N: np.ndarray
    starts: np.ndarray  # of each document in tokens_N
    rows: list[Row]


@dataclass(frozen=True)
class _Share(IterableDataset):
    """The micro-batches of one rank, or in a worker process of DataLoader every n-th of them."""

    stream: TokenStream
    first: int  # sample
    rows_per_step: int
    micro_batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[Batch | ConfigError | DataError]:
        worker = get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        per_step = self.rows_per_step // (self.micro_batch * self.world)
        while True:
            step, part = divmod(number, per_step)
            done = self.first + (step + (part == per_step - 1)) * self.rows_per_step
            first = self.first + step * self.rows_per_step + (part * self.world + self.rank) * self.micro_batch
            try:
                batch = self.stream._batch(
                    range(first, first + self.micro_batch), self.micro_batch, self.stream.cursor(done)
                )
            except (ConfigError, DataError) as error:
                yield error  # raised by the reader: DataLoader would bury the message in a worker's traceback
                return
            yield batch
            number += stride


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A scheduler or a keyboard signals the whole process group; the trainer needs its workers while it stops."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _raise_errors(item: Batch | ConfigError | DataError) -> Batch:
    if isinstance(item, Exception):
        raise item
    return item


def _from_thread(share: _Share) -> Generator[Batch]:
    items = iter(share)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        ahead = deque(thread.submit(next, items) for _ in range(_PREFETCH))
        while True:
            batch = _raise_errors(ahead.popleft().result())
            ahead.append(thread.submit(next, items))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _from_workers(share: _Share, workers: int) -> Generator[Batch]:
    loader = DataLoader(
        share,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",  # a fork copies locks that threads of the backend or of W&B may hold
        prefetch_factor=_PREFETCH,
        generator=torch.Generator(),  # else it draws a seed from torch's global one, and workers=0 does not
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for item in loader:
        yield _raise_errors(item)

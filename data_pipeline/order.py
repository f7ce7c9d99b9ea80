"""Which row of which window is sample i: a pure function of shards, seed, packing and mixture.

Knows nothing of ranks, workers or batches, which is why they cannot change the order. The mixture names the source of a
sample and its number among the samples of that source; each source is an endless sequence of its own: epoch e visits
its windows in a keyed permutation, and the rows of each window in another.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.mixture import Mixture
from data_pipeline.permutation import permute
from data_pipeline.plan import VERSION, Packing


class Place(NamedTuple):
    """Where a sample comes from."""

    source: int
    epoch: int
    window: int  # of that source
    row: int


class Order:
    """The endless sequence of samples.

    Args:
        names: of the sources, each unlike the others.
        rows: of each source, the rows its windows pack into.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[np.ndarray], mixture: Mixture, seed: int) -> None:
        self.mixture = mixture
        self._sources = [_Source(name, windows, seed) for name, windows in zip(names, rows, strict=True)]

    def place(self, sample: int) -> Place:
        """Source, epoch, window and row of a sample (0, 1, ...)."""
        source, number = self.mixture.locate(sample)
        turn, within = self._sources[source].turn(number)
        return Place(source, turn.epoch, turn.window, turn.rows[within])

    def samples(self, source: int, window: int, row: int, before: int) -> Iterator[int]:
        """Every sample below `before` that is this row of this window, one an epoch."""
        own = self._sources[source]
        for epoch in range(-(-self.mixture.counts(before)[source] // own.rows_per_epoch)):
            sample = self.mixture.sample(source, own.number(epoch, window, row))
            if sample is not None and sample < before:
                yield sample


def order_sha256(how: Packing, seed: int) -> str:
    """Digest of all that the order depends on besides shards, mixture and skips."""
    inputs = {"order": VERSION, "seed": seed, **vars(how)}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class _Source:
    """The endless sequence of one source's rows."""

    def __init__(self, name: str, rows: np.ndarray, seed: int) -> None:
        self.rows = rows
        self.rows_per_epoch = int(rows.sum(dtype=np.int64))
        self._key = f"{seed}/{name}"
        # Samples are mostly asked for in order, so one epoch and one window of it are kept.
        self._visits: _Visits | None = None
        self._turn = _Turn(0, 0, 0, ())

    def turn(self, number: int) -> tuple[_Turn, int]:
        """The visit to a window that holds the source's `number`-th sample, and the sample's number within it."""
        turn = self._turn
        if not 0 <= number - turn.first < len(turn.rows):
            turn = self._turn = self._turn_of(number)
        return turn, number - turn.first

    def _turn_of(self, number: int) -> _Turn:
        epoch, offset = divmod(number, self.rows_per_epoch)
        visits = self._visits_of(epoch)
        turn = int(np.searchsorted(visits.ends, offset, side="right"))
        window = int(visits.windows[turn])
        first = epoch * self.rows_per_epoch + int(visits.ends[turn]) - int(self.rows[window])
        return _Turn(first, epoch, window, _row_order(self._key, epoch, window, int(self.rows[window])))

    def number(self, epoch: int, window: int, row: int) -> int:
        """The number of the sample that is this row in this epoch."""
        visits = self._visits_of(epoch)
        turn = int(np.flatnonzero(visits.windows == window)[0])
        within = _row_order(self._key, epoch, window, int(self.rows[window])).index(row)
        return epoch * self.rows_per_epoch + int(visits.ends[turn]) - int(self.rows[window]) + within

    def _visits_of(self, epoch: int) -> _Visits:
        if self._visits is None or self._visits.epoch != epoch:
            count = len(self.rows)
            windows = permute(np.arange(count), count, f"{self._key}/{epoch}/windows").astype(np.int64)
            self._visits = _Visits(epoch, windows, np.cumsum(self.rows[windows], dtype=np.int64))
        return self._visits


class _Visits(NamedTuple):
    """The windows as an epoch visits them."""

    epoch: int
    windows: np.ndarray
    ends: np.ndarray  # rows up to and with each


class _Turn(NamedTuple):
    """One visit to a window."""

    first: int  # number of its first sample
    epoch: int
    window: int
    rows: tuple[int, ...]


@functools.lru_cache(maxsize=64)  # windows that are small, or shared by many readers, are come back to
def _row_order(key: str, epoch: int, window: int, count: int) -> tuple[int, ...]:
    """The rows of a window as an epoch visits them."""
    return tuple(permute(np.arange(count), count, f"{key}/{epoch}/rows/{window}").tolist())

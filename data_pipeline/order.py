"""Which row of which window is sample i: a pure function of the shards, the seed and how rows are packed.

Knows nothing of ranks, workers or batches, which is why they cannot change the order. Windows are fixed groups of
consecutive blocks; each is packed on its own, so what a window's rows hold never changes. Epoch e visits the windows in
a keyed permutation, and the rows of each window in another; epochs never end.

How many rows each window packs into is the plan. It follows from the lengths of the documents; `gemcutter tokenize`
stores it beside the shards, so that opening millions of shards does not read all their indexes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conf.exits import DataError
from data_pipeline.pack import pack
from data_pipeline.permutation import permute
from data_pipeline.reader import Shards

# Raise when packing or permutation change what a sample holds: cursors and plans of the old order are then refused.
VERSION = 1


class Place(NamedTuple):
    """Where a sample comes from."""

    epoch: int
    window: int
    row: int


@dataclass(frozen=True)
class Packing:
    """How documents become rows; with the shards it fixes what each window holds."""

    sequence_length: int
    packing: str
    window_blocks: int


@dataclass(frozen=True)
class Plan:
    """Rows each window packs into, and how well they are filled."""

    rows: list[int]
    fill: float  # share of slots that hold a token
    documents_split: int  # documents that did not stay in one row


def make_plan(shards: Shards, how: Packing) -> Plan:
    """Pack every window on paper, from the lengths in the indexes. Raises DataError where there is no document."""
    if shards.documents == 0:
        raise DataError(
            f"{shards.manifest} holds no documents: curate more text, or name other shards "
            "(data.manifest, data.held_out)"
        )
    rows, filled, split = [], 0, 0
    for window in range(num_windows(shards, how)):
        packed = pack(shards.lengths(*window_blocks(shards, how, window)), how.sequence_length, how.packing)
        rows.append(len(packed))
        filled += sum(piece.slots for row in packed for piece in row)
        split += len({piece.document for row in packed for piece in row if piece.start})
    return Plan(rows, round(filled / (sum(rows) * how.sequence_length), 6), split)


def plan_name(how: Packing) -> str:
    """The plan's file, beside the manifest."""
    return f"plan-S{how.sequence_length}-{how.packing}-w{how.window_blocks}.json"


def dump_plan(shards: Shards, how: Packing, plan: Plan) -> bytes:
    """The plan as the bytes of its file, bound to the shards and the order it is for."""
    return json.dumps({"format": 1, "order": VERSION, "manifest": shards.sha256, **vars(plan), **vars(how)}).encode()


def load_plan(shards: Shards, how: Packing) -> Plan:
    """The stored plan where it is one of these shards and this order; else it is made anew."""
    data = shards.beside(plan_name(how))
    if data is None:
        return make_plan(shards, how)
    try:
        stored = json.loads(data)
        if stored["order"] != VERSION or stored["manifest"] != shards.sha256:
            return make_plan(shards, how)
        return Plan(stored["rows"], stored["fill"], stored["documents_split"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{plan_name(how)} beside {shards.manifest} is not a plan ({error}): remove it, it is made again"
        ) from error


def num_windows(shards: Shards, how: Packing) -> int:
    """Windows of an epoch; the last may be smaller."""
    return -(-shards.num_blocks // how.window_blocks)


def window_blocks(shards: Shards, how: Packing, window: int) -> tuple[int, int]:
    """First block and the one after the last block of a window."""
    first = window * how.window_blocks
    return first, min(first + how.window_blocks, shards.num_blocks)


class Order:
    """The endless sequence of samples."""

    def __init__(self, rows: list[int], seed: int, how: Packing) -> None:
        self.rows = rows  # of each window
        self.seed = seed
        self.how = how
        self.rows_per_epoch = sum(rows)
        inputs = {"order": VERSION, "seed": seed, **vars(how)}
        self.sha256 = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        self._visits = self._visits_of(0)

    def place(self, sample: int) -> Place:
        """Epoch, window and row of a sample (0, 1, ...)."""
        epoch, offset = divmod(sample, self.rows_per_epoch)
        visits = self._visits
        if visits.epoch != epoch:  # samples are mostly asked for in order, so one epoch is kept
            visits = self._visits = self._visits_of(epoch)
        turn = int(np.searchsorted(visits.ends, offset, side="right"))
        window = int(visits.windows[turn])
        turn_offset = offset - (int(visits.ends[turn]) - self.rows[window])
        return Place(epoch, window, int(_row_order(self.seed, epoch, window, self.rows[window])[turn_offset]))

    def _visits_of(self, epoch: int) -> _Visits:
        count = len(self.rows)
        windows = permute(np.arange(count), count, f"{self.seed}/{epoch}/windows").astype(np.int64)
        return _Visits(epoch, windows, np.cumsum(np.array(self.rows, dtype=np.int64)[windows]))


class _Visits(NamedTuple):
    """The windows as an epoch visits them."""

    epoch: int
    windows: np.ndarray
    ends: np.ndarray  # rows up to and with each


@functools.lru_cache(maxsize=4)
def _row_order(seed: int, epoch: int, window: int, count: int) -> np.ndarray:
    """The rows of a window as an epoch visits them."""
    return permute(np.arange(count), count, f"{seed}/{epoch}/rows/{window}")

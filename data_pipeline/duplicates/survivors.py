"""Which documents of a cluster stay.

In a chain a ~ b ~ c the ends need not be alike. So a cluster is gone through by preference (`ranks.py`), and a document
goes only where one that stays is similar to it: one of the most preferred COMPARED that stay, by sketches, or one of a
pair that was found. It goes for the most preferred of these, which stands for it; a cluster may leave several.

Each is similar to what stays for it, and in clusters that leave no more than COMPARED no two that stay are similar.
Documents that are gone for another reason take no part: they neither stay nor make others go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.duplicates import ranks, sketches
from data_pipeline.duplicates.clusters import MEMBER
from data_pipeline.engine import records

Array: TypeAlias = npt.NDArray[Any]

REMOVED = np.dtype([("key", np.uint64), ("survivor", np.uint64)])
KEPT = np.dtype([("key", np.uint64), ("size", np.uint64)])
REMOVED_FILE, KEPT_FILE = "removed.npy", "kept.npy"

COMPARED = 64
_BATCH = 40_000  # documents whose sketches are in memory at once: 160 MB at most where sketches hold 1,000 values


@dataclass(frozen=True)
class Survive:
    """Task: go through the clusters whose smallest document is in a range.

    members     files that `clusters.gather` wrote
    folders     of the tasks that read documents
    gone        files of records whose keys are documents that take no part
    most, least as in `pairs.Verify`
    """

    members: Sequence[Path]
    folders: Sequence[Path]
    gone: Sequence[Path]
    most: int
    least: float
    first_new: int
    first: int
    stop: int


def survive(task: Survive, folder: Path) -> dict[str, Any]:
    """Write which documents go, and how many each survivor stands for."""
    members = records.read(task.members, task.first, task.stop, MEMBER)
    documents_N = np.unique(np.concatenate([members["document"], members["other"]]))
    is_gone_N = records.among(task.gone, documents_N)
    edges_E2 = np.searchsorted(documents_N, np.stack([members["document"], members["other"]], axis=1))
    groups_N = np.zeros(documents_N.size, np.uint64)
    groups_N[edges_E2] = members["key"][:, None]
    ranks_N = ranks.read([one / ranks.FILE for one in task.folders], documents_N)
    order_N = ranks.order(ranks_N, groups_N, task.first_new)
    # From here on documents are known by their place in this order.
    place_N = np.empty_like(order_N)
    place_N[order_N] = np.arange(order_N.size)
    documents_N, groups_N, is_gone_N = documents_N[order_N], groups_N[order_N], is_gone_N[order_N]
    preferred_N1, preferred = _preferred(place_N[edges_E2], documents_N.size)
    survivors_N = np.arange(documents_N.size)
    # Sketches of the most preferred that stay of the cluster at hand, and of each its place, size and completeness.
    room, room_C3 = np.empty((COMPARED, task.most), np.uint32), np.zeros((COMPARED, 3), np.int64)
    held = 0
    is_earlier_N = documents_N < np.uint64(task.first_new)
    stored = sketches.Stored(task.folders)
    for begin in range(0, documents_N.size, _BATCH):
        batch = documents_N[begin : begin + _BATCH]
        by_number = np.argsort(batch)
        them = stored.read(batch[by_number])
        at_N = np.empty_like(by_number)
        at_N[by_number] = np.arange(by_number.size)
        held = _go_through(
            begin, at_N, them.values, them.starts_N1, them.whole_N, groups_N, is_gone_N,
            is_earlier_N, preferred_N1, preferred, task.most, task.least,
            room, room_C3, held, survivors_N,
        )  # fmt: skip
    goes = survivors_N != np.arange(documents_N.size)
    return write(folder, documents_N[goes], documents_N[survivors_N[goes]])


def write(folder: Path, removed: npt.NDArray[np.uint64], survivors: npt.NDArray[np.uint64]) -> dict[str, Any]:
    """Write documents that go, keyed by number with what stays for them, and that with how many it stands for."""
    goes = np.empty(len(removed), REMOVED)
    goes["key"], goes["survivor"] = removed, survivors
    records.write(folder / REMOVED_FILE, goes)
    numbers, counts = np.unique(survivors, return_counts=True)
    stays = np.empty(len(numbers), KEPT)
    stays["key"], stays["size"] = numbers, counts + 1
    records.write(folder / KEPT_FILE, stays)
    return {"removed": len(goes), "survivors": len(stays)}


def _preferred(edges_E2: npt.NDArray[np.int64], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The preferred ends of each place's edges, ascending, and where those of each begin."""
    late, early = edges_E2.max(1), edges_E2.min(1)
    order = np.lexsort((early, late))
    begins = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(late, minlength=count), out=begins[1:])
    return begins, early[order]


@njit(cache=True, nogil=True)
def _go_through(
    begin: int, at_N: Array, values: Array, starts_N1: Array, whole_N: Array, groups_N: Array, is_gone_N: Array,
    is_earlier_N: Array, preferred_N1: Array, preferred: Array, most: int, least: float,
    room: Array, room_C3: Array, held: int, survivors_N: Array,
) -> int:  # fmt: skip
    """Find what stays for each document of a batch; returns how many sketches the room holds of its last cluster."""
    for n in range(at_N.size):
        place = begin + n
        if place and groups_N[place] != groups_N[place - 1]:
            held = 0
        if is_gone_N[place]:
            continue
        sketch, is_whole = values[starts_N1[at_N[n]] : starts_N1[at_N[n] + 1]], whole_N[at_N[n]]
        if not is_earlier_N[place]:
            survivors_N[place] = _survivor(
                place, preferred_N1, preferred, is_gone_N, survivors_N, sketch, is_whole,
                room, room_C3, held, most, least,
            )  # fmt: skip
        if survivors_N[place] == place and held < len(room):
            room[held, : sketch.size] = sketch
            room_C3[held, 0], room_C3[held, 1], room_C3[held, 2] = place, sketch.size, is_whole
            held += 1
    return held


@njit(cache=True, nogil=True)
def _survivor(
    place: int, preferred_N1: Array, preferred: Array, is_gone_N: Array, survivors_N: Array,
    sketch: Array, is_whole: bool, room: Array, room_C3: Array, held: int, most: int, least: float,
) -> int:  # fmt: skip
    """The place of the most preferred that stays and is similar: the document's own where nothing is."""
    survivor = place
    for i in range(preferred_N1[place], preferred_N1[place + 1]):
        one = preferred[i]
        if survivors_N[one] == one and not is_gone_N[one]:
            survivor = one
            break
    for i in range(held):
        one, size, other_is_whole = room_C3[i]
        if one >= survivor:
            break
        sample = 2 * most if is_whole and other_is_whole else most
        if sketches.similarity(sketch, room[i, :size], sample) >= least:
            return one
    return survivor

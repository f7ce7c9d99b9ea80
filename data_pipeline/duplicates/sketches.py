"""Sketches: the smallest shingle hashes of documents, which tell the Jaccard similarity of any two.

Of two sketches the `most` smallest values of their union are a fair sample of all shingles of both documents; the share
of it that both hold estimates the similarity, within 0.014 at 0.75 for a sample of 1,000 (one standard deviation). It
is exact where both sketches hold every shingle. Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches".

A task that reads documents writes two files: `sketched.npy`, records that say where the sketch of a document lies, and
`sketches.npy`, the hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.engine import records

Array: TypeAlias = npt.NDArray[Any]

ENTRY = np.dtype([("key", np.uint64), ("first", np.uint64), ("count", np.uint32), ("whole", np.uint32)])
ENTRIES, VALUES = "sketched.npy", "sketches.npy"
_AT_ONCE = 1 << 22  # values that are copied
_OPEN = 200  # folders, of two files each; systems allow a process 1,024


@dataclass(frozen=True)
class Sketches:
    """Sketches of N documents, in memory: `values[starts_N1[n]:starts_N1[n + 1]]`, ascending.

    whole_N   whether a sketch holds every shingle
    """

    values: npt.NDArray[np.uint32]
    starts_N1: npt.NDArray[np.int64]
    whole_N: npt.NDArray[np.bool_]


def write(folder: Path, entries: Sequence[records.Records], values: Sequence[npt.NDArray[np.uint32]]) -> None:
    """Write sketches."""
    records.write(folder / ENTRIES, np.concatenate([np.empty(0, ENTRY), *entries]))
    records.save(folder / VALUES, np.concatenate(values))


def join(folders: Sequence[Path], folder: Path) -> None:
    """Write the sketches of several folders, whose documents ascend from one to the next."""
    entries, size = [], 0
    for one in folders:
        entry = np.load(one / ENTRIES, allow_pickle=False)
        entry["first"] += np.uint64(size)
        entries.append(entry)
        size += _load(one / VALUES).size
    records.write(folder / ENTRIES, np.concatenate(entries))
    with (folder / VALUES).open("wb") as file:
        header = {"descr": "<u4", "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(file, header)
        for one in folders:
            values = _load(one / VALUES)
            for at in range(0, values.size, _AT_ONCE):
                file.write(values[at : at + _AT_ONCE].tobytes())


class Stored:
    """Sketches that tasks wrote into folders, for as long as a task needs them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Open their files, of which the first `_OPEN` stay open: a process may not open any number."""
        self._folders = folders
        self._open = [(_load(folder / ENTRIES), _load(folder / VALUES)) for folder in folders[:_OPEN]]

    def read(self, documents_N: npt.NDArray[np.uint64]) -> Sketches:
        """The sketches of documents, given by distinct ascending numbers, of which every one was written.

        Reads only what belongs to them. Raises KeyError where one is missing.
        """
        entries_N = np.zeros(documents_N.size, ENTRY)
        slices: list[tuple[int, int, int]] = []
        for number in range(len(self._folders)):
            begin, found = records.find(self._entries(number), documents_N)
            if found.size:
                entries_N[begin : begin + found.size] = found
                slices.append((begin, begin + found.size, number))
        starts_N1 = np.zeros(documents_N.size + 1, np.int64)
        np.cumsum(entries_N["count"], out=starts_N1[1:])
        values = np.empty(starts_N1[-1], np.uint32)
        for begin, end, number in slices:
            _gather(self._values(number), entries_N["first"][begin:end], starts_N1[begin : end + 1], values)
        return Sketches(values, starts_N1, entries_N["whole"] != 0)

    def _entries(self, number: int) -> records.Records:
        return self._open[number][0] if number < _OPEN else _load(self._folders[number] / ENTRIES)

    def _values(self, number: int) -> npt.NDArray[np.uint32]:
        return self._open[number][1] if number < _OPEN else _load(self._folders[number] / VALUES)


def _load(path: Path) -> Array:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def similarities(sketches: Sketches, pairs_P2: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.float32]:
    """Jaccard similarity (float32 [P]) of pairs of places among the sketches, each of at most `most` values."""
    similarities_P = np.empty(len(pairs_P2), np.float32)
    _similarities(sketches.values, sketches.starts_N1, sketches.whole_N, pairs_P2, most, similarities_P)
    return similarities_P


@njit(cache=True, nogil=True)
def _gather(stored: Array, firsts: Array, starts: Array, values: Array) -> None:
    for n in range(firsts.size):
        first = np.int64(firsts[n])
        for i in range(starts[n + 1] - starts[n]):
            values[starts[n] + i] = stored[first + i]


@njit(cache=True, nogil=True)
def _similarities(
    values: Array, starts_N1: Array, whole_N: Array, pairs_P2: Array, most: int, similarities_P: Array
) -> None:
    for p in range(similarities_P.size):
        a, b = pairs_P2[p, 0], pairs_P2[p, 1]
        similarities_P[p] = similarity(
            values[starts_N1[a] : starts_N1[a + 1]],
            values[starts_N1[b] : starts_N1[b + 1]],
            most if not (whole_N[a] and whole_N[b]) else 2 * most,
        )


@njit(cache=True, nogil=True)
def similarity(one: Array, other: Array, most: int) -> float:
    """The share of the smallest values of two sketches, up to so many, that both hold."""
    i, j, seen, shared = 0, 0, 0, 0
    while i < one.size and j < other.size and seen < most:
        a, b = one[i], other[j]
        i += a <= b
        j += b <= a
        shared += a == b
        seen += 1
    seen += min(most - seen, one.size - i + other.size - j)
    return shared / seen if seen else 0.0

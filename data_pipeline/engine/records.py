"""Files of records of equal width, sorted by their key, and ranges of keys over many such files.

The global steps of curation (what is equal to what, over all documents) are tasks over ranges of keys: each reads its
slice of every file, which is found by bisection, so its memory is bounded by how many ranges there are. Keys are
hashes, which fall evenly, or numbers of documents.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Records: TypeAlias = npt.NDArray[Any]  # structured, with a field `key` of u64

# Does the tasks of a stage of that name; returns the folder of each and its facts.
Do: TypeAlias = Callable[[str, Callable[[Any, Path], dict[str, Any]], Sequence[Any]], list[tuple[Path, dict[str, Any]]]]

RANGE_BYTES = 256 * 2**20  # of records that a task holds at once
MANY = 128  # files: more of them are merged before many tasks read them
_MERGED_BYTES = 32 * 2**20  # that a merge holds at once, or a few times as many
_KEYS = 2**64
_SAMPLES = 32  # keys that are looked at for each range


def write(path: Path, records: Records) -> None:
    """Write records sorted by `key`, those of one key in the order given."""
    save(path, records[np.argsort(records["key"], kind="stable")])


def save(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as NumPy does. Raises OSError, with the system's number, where it does not fit on the disk.

    Into a file of the system NumPy writes past Python: it hands out no number, and says nothing at all where only the
    last block did not fit.
    """
    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def read(paths: Iterable[Path], first: int, stop: int, dtype: np.dtype[Any]) -> Records:
    """Records of all files with first <= key < stop, sorted by key; of one key in the order of the files."""
    slices = [_slice(path, first, stop) for path in paths]
    records = np.concatenate([np.empty(0, dtype), *slices])
    return records[np.argsort(records["key"], kind="stable")]


def ranges(total_bytes: int, most: int = RANGE_BYTES) -> list[tuple[int, int]]:
    """Ranges that cover all keys, with at most about so many bytes each where keys fall evenly."""
    count = max(1, -(-total_bytes // most))
    bounds = [_KEYS * number // count for number in range(count + 1)]
    return list(itertools.pairwise(bounds))


def balanced(paths: Iterable[Path], most: int = RANGE_BYTES) -> list[tuple[int, int]]:
    """Ranges that cover all keys, with about so many bytes of these files each, however the keys fall.

    All records of one key are in one range, which may be larger for it. Bounds are found by looking at a few keys.
    """
    samples, skip = [], 0
    for path in paths:
        keys = np.load(path, mmap_mode="r", allow_pickle=False)["key"]
        step = max(1, most // _SAMPLES // keys.strides[0])
        samples.append(np.array(keys[skip::step]))
        skip = (skip - len(keys)) % step if skip < len(keys) else skip - len(keys)
    together = np.sort(np.concatenate([np.empty(0, np.uint64), *samples]))
    inner = np.unique(together[_SAMPLES::_SAMPLES])
    return list(itertools.pairwise([0, *inner[inner > 0].tolist(), _KEYS]))


def find(records: Records, wanted: npt.NDArray[np.uint64]) -> tuple[int, Records]:
    """Of distinct ascending keys, those that lie between the first and the last key of a file, mapped into memory.

    Returns the place of the first of them, and the record of each. Reads only what it looks at. Raises KeyError where
    the file holds no record of one of them.
    """
    if not len(records):
        return 0, np.empty(0, records.dtype)
    first, last = np.searchsorted(wanted, np.array([records["key"][0], records["key"][-1]], np.uint64))
    last += last < wanted.size and wanted[last] == records["key"][-1]
    places = places_of(records["key"], wanted[first:last])
    found = np.array(records[np.minimum(places, len(records) - 1)])
    if not np.array_equal(found["key"], wanted[first:last]):
        name = getattr(records, "filename", "what is in memory")
        raise KeyError(f"{name} lacks records of some keys from {wanted[first]} to {wanted[last - 1]}")
    return int(first), found


def among(paths: Iterable[Path], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of some ascending keys have a record in any of the files."""
    is_there = np.zeros(wanted.size, np.bool_)
    for path in paths:
        keys = np.load(path, mmap_mode="r", allow_pickle=False)["key"]
        if len(keys):
            is_there |= keys[np.minimum(places_of(keys, wanted), len(keys) - 1)] == wanted
    return is_there


def begins(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Where runs of equal keys begin, among sorted ones."""
    is_first = np.ones(keys.size, np.bool_)
    is_first[1:] = keys[1:] != keys[:-1]
    return np.flatnonzero(is_first)


@dataclass(frozen=True)
class Merge:
    """Task: several files as one, of the name that each has."""

    paths: Sequence[Path]


def merge(task: Merge, folder: Path) -> dict[str, Any]:
    """Write the records of all files, sorted by key; those of one key in the order of the files."""
    return {"records": merge_into(task.paths, folder / task.paths[0].name)}


def merge_into(paths: Sequence[Path], target: Path) -> int:
    """See `merge`. Holds a range of keys at a time; returns how many records there are."""
    stored = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    count, dtype = sum(map(len, stored)), stored[0].dtype
    with target.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for first, stop in balanced(paths, _MERGED_BYTES):
            file.write(read(paths, first, stop, dtype).tobytes())
    return count


def few(name: str, paths: Sequence[Path], do: Do) -> list[Path]:
    """The files, or where there are many, fewer with the same records: a task over a range of keys opens them all.

    `name` is that of the stage which then merges them.
    """
    if len(paths) <= MANY:
        return [*paths]
    tasks = [Merge(paths[first : first + MANY]) for first in range(0, len(paths), MANY)]
    return [folder / paths[0].name for folder, _ in do(name, merge, tasks)]


@njit(cache=True)
def places_of(keys: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Where each of some ascending keys is among sorted ones, or would be. Not searchsorted, which copies a column."""
    places = np.empty(wanted.size, np.int64)
    begin = 0
    for n in range(wanted.size):
        end = keys.size
        while begin < end:
            middle = (begin + end) // 2
            if keys[middle] < wanted[n]:
                begin = middle + 1
            else:
                end = middle
        places[n] = begin
    return places


def _slice(path: Path, first: int, stop: int) -> Records:
    records = np.load(path, mmap_mode="r", allow_pickle=False)
    keys = records["key"]
    # Not searchsorted, which would read the whole column.
    begin = bisect.bisect_left(keys, first)
    end = len(keys) if stop >= _KEYS else bisect.bisect_left(keys, stop)
    return np.array(records[begin:end])

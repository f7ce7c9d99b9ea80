"""Files of records of equal width, sorted by their key, and ranges of keys over many such files.

The global steps of curation (what is equal to what, over all documents) are tasks over ranges of keys: each reads its
slice of every file, which is found by bisection, so its memory is bounded by how many ranges there are. Keys are
hashes, which fall evenly, or numbers of documents.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Records: TypeAlias = npt.NDArray[Any]  # structured, with a field `key` of u64

RANGE_BYTES = 256 * 2**20  # of records that a task holds at once
_KEYS = 2**64


def write(path: Path, records: Records) -> None:
    """Write records sorted by `key`, those of one key in the order given."""
    np.save(path, records[np.argsort(records["key"], kind="stable")], allow_pickle=False)


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


def _slice(path: Path, first: int, stop: int) -> Records:
    records = np.load(path, mmap_mode="r", allow_pickle=False)
    keys = records["key"]
    # Not searchsorted, which would read the whole column.
    begin = bisect.bisect_left(keys, first)
    end = len(keys) if stop >= _KEYS else bisect.bisect_left(keys, stop)
    return np.array(records[begin:end])

"""Which of several documents that say the same is preferred: the better one, then the longer one, then the one of the
source that comes first, then the one of the smaller number.

Numbers of documents grow from curation to curation: `first_new` is the first that is not of an earlier one. Earlier
documents are preferred to all others, as nothing can take them back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from data_pipeline.engine import records

Array: TypeAlias = npt.NDArray[Any]

RANK = np.dtype([("key", np.uint64), ("quality", np.float32), ("length", np.uint32), ("source", np.uint64)])
FILE = "ranks.npy"


def write(folder: Path, documents_D: Array, qualities_D: Array, lengths_D: Array, sources_D: Array) -> None:
    """Write what documents are preferred by. Sources are numbers; smaller ones come first."""
    ranks = np.empty(len(documents_D), RANK)
    ranks["key"], ranks["quality"], ranks["length"], ranks["source"] = documents_D, qualities_D, lengths_D, sources_D
    records.write(folder / FILE, ranks)


def read(paths: Iterable[Path], documents_N: npt.NDArray[np.uint64]) -> records.Records:
    """Ranks of documents, given by distinct ascending numbers."""
    ranks_N = np.zeros(documents_N.size, RANK)
    for path in paths:
        begin, found = records.find(np.load(path, mmap_mode="r", allow_pickle=False), documents_N)
        ranks_N[begin : begin + found.size] = found
    return ranks_N


def order(ranks_N: records.Records, groups_N: Array, first_new: int) -> npt.NDArray[np.int64]:
    """Places of documents, those of one group together and by preference, groups by their ascending number."""
    earlier_N = ranks_N["key"] < np.uint64(first_new)
    quality_N = np.where(earlier_N, np.float32(np.inf), ranks_N["quality"])
    length_N = np.where(earlier_N, np.uint32(0), ranks_N["length"])
    source_N = np.where(earlier_N, np.uint64(0), ranks_N["source"])
    return np.lexsort((ranks_N["key"], source_N, -length_N.astype(np.int64), -quality_N, groups_N))

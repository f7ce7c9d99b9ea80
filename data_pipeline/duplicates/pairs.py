"""Pairs of documents that are similar: candidates share a band, and their sketches tell whether they are.

Most documents of a bucket (those of one band key) are copies of one another, so documents of equal content are told
apart first: each is paired with the first of them alone. Of different contents all are paired with all where they are
few. In a larger bucket each is paired with the first HUBS and with the NEIGHBOURS before it, by a hash of the
content: no one hub is similar to all, and what a bucket misses another band or `survivors.py` finds. So a bucket of n
documents costs at most about 16 n pairs, and neither numbers nor ranges of documents matter. A task holds its largest
bucket whole, some 80 bytes a document; pairs are written in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.duplicates import minhash, sketches
from data_pipeline.engine import records

Array: TypeAlias = npt.NDArray[Any]

EDGE = np.dtype([("key", np.uint64), ("other", np.uint64)])
FILE = "edges.npy"
PIECE = 2**21  # pairs that are found before they are written: 32 MiB

HUBS, NEIGHBOURS = 8, 8  # up to 17 contents, every two are paired
_BATCH = 20_000  # pairs whose sketches are in memory at once: 160 MB at most where sketches hold 1,000 values


@dataclass(frozen=True)
class Candidates:
    """Task: pair documents by the band keys of a range. Pairs of two documents before `first_new` are left out."""

    folders: Sequence[Path]
    first_new: int
    first: int
    stop: int


def candidates(task: Candidates, folder: Path) -> dict[str, Any]:
    """Write pairs with the smaller number as key, into several `files` of PIECE pairs at most, each once in a file."""
    bands = records.read([one / minhash.FILE for one in task.folders], task.first, task.stop, minhash.BANDS)
    bands = bands[_shared(bands["key"])]
    # The order in which they come is that of files.
    bands = bands[np.lexsort((bands["document"], bands["content"], bands["key"]))]
    buffer = np.empty(min(PIECE, (HUBS + NEIGHBOURS) * (len(bands) + 1)), EDGE)
    firsts = np.empty(len(bands), np.uint64)
    at, different, found, largest = 0, 0, 0, 0
    files: list[str] = []
    while at < len(bands):
        at, different, count, most = _pair(
            bands["key"], bands["content"], bands["document"], np.uint64(task.first_new), at, different, firsts, buffer
        )
        piece = distinct(buffer[:count])
        files.append(f"{len(files):06d}-{FILE}")
        records.save(folder / files[-1], piece)
        found, largest = found + len(piece), max(largest, most)
    return {"files": files, "pairs": found, "largest_bucket": largest}


@dataclass(frozen=True)
class Verify:
    """Task: of candidates whose smaller number is in a range, find those that are similar.

    candidates   files of pairs
    folders      of the tasks that read documents
    most         values of a sketch
    least        smallest Jaccard similarity of duplicates
    """

    candidates: Sequence[Path]
    folders: Sequence[Path]
    most: int
    least: float
    first: int
    stop: int


def verify(task: Verify, folder: Path) -> dict[str, Any]:
    """Write similar pairs with the larger number as key."""
    pairs = distinct(records.read(task.candidates, task.first, task.stop, EDGE))
    stored = sketches.Stored(task.folders)
    similar = np.concatenate(
        [np.empty(0, np.bool_)]
        + [_similar(pairs[at : at + _BATCH], stored, task) for at in range(0, len(pairs), _BATCH)]
    )
    edges = np.empty(int(similar.sum()), EDGE)
    edges["key"], edges["other"] = pairs["other"][similar], pairs["key"][similar]
    records.write(folder / FILE, edges)
    return {"candidates": len(pairs), "edges": len(edges)}


def distinct(edges: records.Records) -> records.Records:
    """Edges by ascending key and other end, each once."""
    edges = edges[np.lexsort((edges["other"], edges["key"]))]
    again = np.zeros(len(edges), np.bool_)
    again[1:] = (edges["key"][1:] == edges["key"][:-1]) & (edges["other"][1:] == edges["other"][:-1])
    return edges[~again]


def _similar(pairs: records.Records, stored: sketches.Stored, task: Verify) -> npt.NDArray[np.bool_]:
    documents_N, places = np.unique(np.concatenate([pairs["key"], pairs["other"]]), return_inverse=True)
    pairs_P2 = np.ascontiguousarray(places.reshape(2, -1).T)
    return sketches.similarities(stored.read(documents_N), pairs_P2, task.most) >= task.least


def _shared(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which sorted keys are not alone."""
    counts = np.diff(np.append(records.begins(keys), keys.size))
    return np.repeat(counts > 1, counts)


@njit(cache=True, nogil=True)
def _pair(
    keys: Array, contents: Array, documents: Array, first_new: np.uint64, at: int, different: int, firsts: Array,
    pairs: Array,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Fill pairs, from a band on; returns the band to go on from, how many contents its bucket has before it, how many
    pairs there are, and the most contents of a bucket.

    Bands are by key, content and document. `firsts` holds the first document of each content of the bucket.
    """
    count, largest = 0, different
    while at < keys.size and count + HUBS + NEIGHBOURS <= pairs.size:
        document = documents[at]
        begins = at == 0 or keys[at] != keys[at - 1]
        if begins:
            different = 0
        if begins or contents[at] != contents[at - 1]:
            count = _pair_with(firsts, different, document, first_new, pairs, count)
            firsts[different] = document
            different += 1
            largest = max(largest, different)
        elif document >= first_new:
            pairs[count]["key"], pairs[count]["other"] = firsts[different - 1], document
            count += 1
        at += 1
    return at, different, count, largest


@njit(cache=True, nogil=True)
def _pair_with(firsts: Array, different: int, document: int, first_new: np.uint64, pairs: Array, count: int) -> int:
    """Pair a document with some of those before it."""
    for n in range(min(different, HUBS + NEIGHBOURS)):
        if n >= HUBS:
            n = different - 1 - (n - HUBS)
        smaller, larger = min(firsts[n], document), max(firsts[n], document)
        if larger >= first_new:
            pairs[count]["key"], pairs[count]["other"] = smaller, larger
            count += 1
    return count

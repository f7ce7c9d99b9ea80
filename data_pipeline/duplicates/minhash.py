"""What near-duplicates are found by: MinHash signatures in bands, and sketches that tell how similar two documents are.

A document is the set of its shingles: every run of `words` words, without case, width, accents and signs, where every
number counts as the same one (as datatrove has it for FineWeb). The Jaccard similarity of two documents is the number
of shingles they share over the number that either has. A signature holds the smallest value of the set under each of
`bands` x `rows` hash functions; two documents of similarity s agree in all rows of some band, and so become
candidates, with probability 1 - (1 - s^rows)^bands. Broder 1997; Leskovec, Rajaraman, Ullman, chapter 3.

A document of fewer than `words` words has no shingle: it is similar to nothing, and only equal texts are its
duplicates. Numbers are hashed to 32 bits, which makes one in a million of two documents' shingles wrongly equal.

Axes: D documents, B bands, H hash functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.duplicates import sketches
from data_pipeline.engine import records
from data_pipeline.signals.hashing import OF_RUNS, OF_WORDS
from data_pipeline.signals.tokens import ALPHABETIC, SPOKEN, Tokens, mix

Array: TypeAlias = npt.NDArray[Any]

BANDS = np.dtype([("key", np.uint64), ("document", np.uint64), ("content", np.uint64)])
FILE = "bands.npy"

_NUMBER = OF_RUNS  # stands for every word without letters
_SEED = 20261126


@dataclass(frozen=True)
class Shingling:
    """How documents are compared.

    words, bands, rows   see above. For about the cost of FineWeb's 14 x 8, 20 x 6 finds 0.998 of what is 0.8 similar
                         instead of 0.92, and 0.9999 instead of 0.99 at 0.85. That it brings more candidates costs
                         little, and nothing else, as each is verified
    sketch               most shingle hashes that are kept of a document
    """

    words: int = 5
    bands: int = 20
    rows: int = 6
    sketch: int = 1000


@dataclass(frozen=True)
class Measured:
    """A batch of documents.

    keys_DB        equal where all rows of a band are; 0 where a document has no shingle
    contents_D     equal where sketches are
    values         sketches one after the other, each ascending
    starts_D1      where the sketch of each document begins in `values`
    whole_D        whether the sketch holds every shingle
    """

    keys_DB: npt.NDArray[np.uint64]
    contents_D: npt.NDArray[np.uint64]
    values: npt.NDArray[np.uint32]
    starts_D1: npt.NDArray[np.int64]
    whole_D: npt.NDArray[np.bool_]


def measure(tokens: Tokens, how: Shingling) -> Measured:
    """Signatures and sketches of a batch."""
    documents = tokens.words_D1.size - 1
    factors_H, addends_H = functions(how.bands * how.rows)
    keys_DB = np.zeros((documents, how.bands), np.uint64)
    contents_D = np.zeros(documents, np.uint64)
    room = int(np.minimum(np.diff(tokens.words_D1), how.sketch).sum())
    values, starts_D1 = np.empty(room, np.uint32), np.zeros(documents + 1, np.int64)
    whole_D = np.ones(documents, np.bool_)
    _measure(
        tokens.folded_W, tokens.kinds_W, tokens.words_D1, how.words, how.rows, how.sketch, factors_H, addends_H,
        keys_DB, contents_D, values, starts_D1, whole_D,
    )  # fmt: skip
    return Measured(keys_DB, contents_D, values[: starts_D1[-1]].copy(), starts_D1, whole_D)


def functions(count: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Factors and addends (each u32 [count]) of permutations x -> factor * x + addend of the numbers of 32 bits."""
    draws = np.random.Generator(np.random.PCG64(_SEED)).integers(0, 2**32, (count, 2), np.uint32)
    return draws[:, 0] | np.uint32(1), draws[:, 1].copy()


def write(folder: Path, batches: Iterable[tuple[npt.NDArray[np.uint64], Measured]]) -> None:
    """Write the band keys and sketches of documents, given by ascending numbers and what was measured on them."""
    bands, entries, values, first = [], [], [np.empty(0, np.uint32)], 0
    for documents_D, measured in batches:
        has = np.flatnonzero(np.diff(measured.starts_D1))
        keys_DB = measured.keys_DB[has]
        one = np.empty(keys_DB.shape, BANDS)
        one["key"] = keys_DB
        one["document"] = documents_D[has, None]
        one["content"] = measured.contents_D[has, None]
        bands.append(one.ravel())
        entry = np.empty(has.size, sketches.ENTRY)
        entry["key"] = documents_D[has]
        entry["first"] = measured.starts_D1[has] + first
        entry["count"] = np.diff(measured.starts_D1)[has]
        entry["whole"] = measured.whole_D[has]
        entries.append(entry)
        values.append(measured.values)
        first += measured.values.size
    records.write(folder / FILE, np.concatenate([np.empty(0, BANDS), *bands]))
    sketches.write(folder, entries, values)


@njit(cache=True, nogil=True)
def _measure(
    folded_W: Array, kinds_W: Array, words_D1: Array, length: int, rows: int, most: int,
    factors_H: Array, addends_H: Array,
    keys_DB: Array, contents_D: Array, values: Array, starts_D1: Array, whole_D: Array,
) -> None:  # fmt: skip
    longest = 0
    for d in range(words_D1.size - 1):
        longest = max(longest, words_D1[d + 1] - words_D1[d])
    words, shingles = np.empty(longest, np.uint64), np.empty(longest, np.uint32)
    smallest_H = np.empty(factors_H.size, np.uint32)
    buffer = np.empty(4 * most, np.uint32)
    at = 0
    for d in range(words_D1.size - 1):
        count = 0
        for w in range(words_D1[d], words_D1[d + 1]):
            if kinds_W[w] & SPOKEN and folded_W[w] != 0:  # marks alone fold to nothing
                words[count] = folded_W[w] if kinds_W[w] & ALPHABETIC else _NUMBER
                count += 1
        count -= length - 1
        if count > 0:
            _shingles(words, length, shingles[:count])
            _signature(shingles[:count], factors_H, addends_H, smallest_H)
            for b in range(keys_DB.shape[1]):
                key = np.uint64(b + 1) * OF_WORDS
                for h in range(b * rows, (b + 1) * rows):
                    key = (mix(key) + np.uint64(smallest_H[h]) + np.uint64(1)) * OF_WORDS
                keys_DB[d, b] = mix(key)
            held, whole_D[d] = _smallest(shingles[:count], most, buffer)
            content = np.uint64(whole_D[d])
            for i in range(held):
                values[at + i] = buffer[i]
                content = (content + np.uint64(buffer[i]) + np.uint64(1)) * OF_WORDS
            contents_D[d] = mix(content)
            at += held
        starts_D1[d + 1] = at


@njit(cache=True, nogil=True)
def _shingles(words: Array, length: int, shingles: Array) -> None:
    """32 bits of the hash of each run of words."""
    for i in range(shingles.size):
        run = np.uint64(0)
        for j in range(i, i + length):
            run = (run + words[j]) * OF_WORDS  # so that order counts
        shingles[i] = np.uint32(mix(run) >> np.uint64(32))


@njit(cache=True, nogil=True)
def _signature(shingles: Array, factors_H: Array, addends_H: Array, smallest_H: Array) -> None:
    """The smallest value of each function; the inner loop runs in vector registers."""
    for h in range(smallest_H.size):
        smallest_H[h] = np.uint32(0xFFFFFFFF)
    for i in range(shingles.size):
        shingle = shingles[i]
        for h in range(smallest_H.size):
            value = np.uint32(factors_H[h] * shingle + addends_H[h])
            smallest_H[h] = min(smallest_H[h], value)


@njit(cache=True, nogil=True)
def _smallest(shingles: Array, most: int, buffer: Array) -> tuple[int, bool]:
    """The distinct shingles that are smallest, ascending at the head of the buffer.

    Returns how many, and whether these are all. The buffer has room for several times `most`.
    """
    held, whole, limit = 0, True, np.uint32(0xFFFFFFFF)
    for i in range(shingles.size):
        if shingles[i] <= limit:
            if held == buffer.size:
                held, limit, whole = _cut(buffer, held, most, limit, whole)
                if shingles[i] > limit:
                    continue
            buffer[held] = shingles[i]
            held += 1
        else:
            whole = False
    held, limit, whole = _cut(buffer, held, most, limit, whole)
    return held, whole


@njit(cache=True, nogil=True)
def _cut(buffer: Array, held: int, most: int, limit: np.uint32, whole: bool) -> tuple[int, np.uint32, bool]:
    """Sort what is held and leave the distinct ones that are smallest; anything beyond the limit was seen already."""
    buffer[:held].sort()
    distinct = 0
    for i in range(held):
        if distinct == 0 or buffer[i] != buffer[distinct - 1]:
            if distinct == most:
                return distinct, buffer[distinct - 1], False
            buffer[distinct] = buffer[i]
            distinct += 1
    return distinct, limit, whole

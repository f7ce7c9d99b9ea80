"""Lines and paragraphs that many documents share: menus, licences, notices.

A passage is a line, or a paragraph (lines between blank ones) of several, as its letters and digits without case, width
and accents; digits count as the same one. So a notice that is wrapped elsewhere or dated otherwise is the same. One of
fewer than `letters` letters is never counted: short lines repeat in good text, too. Ideographs count as three.

What occurs in at least `documents` documents is cut out of all but the first of them, which keeps it: so what is worth
reading (a well-known poem, a licence) is read once. It vanishes only where that first document goes after all, for what
else is cut out of it. A document that would lose more than a share of its letters goes as a whole: what is left of it
is no text that somebody wrote.

Only documents that stay may be counted. Near-duplicates share all their lines: counted before they are gone, they
would have them cut out of the survivor.

A task counts its own documents first, so that a range holds a passage once for each task, however common it is.
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
from data_pipeline.signals.characters import BLANK, IDEOGRAPH, LETTER, characters
from data_pipeline.signals.hashing import OF_WORDS
from data_pipeline.signals.tokens import Tokens, mix

Array: TypeAlias = npt.NDArray[Any]

PASSAGE = np.dtype([("key", np.uint64), ("document", np.uint64), ("count", np.uint64)])
FILE = "passages.npy"
COMMON_FILE = "common.npy"

_IDEOGRAPH_LETTERS = 3
_DIGIT = np.uint64(ord("0"))


@dataclass(frozen=True)
class Passages:
    """Those of a batch that are long enough. Axes: P passages, D documents.

    hashes_P             equal for equal passages
    documents_P          place of the document in the batch
    firsts_P, stops_P    lines, as `Tokens` counts them
    letters_L            letters of each line of the batch
    """

    hashes_P: npt.NDArray[np.uint64]
    documents_P: npt.NDArray[np.int64]
    firsts_P: npt.NDArray[np.int64]
    stops_P: npt.NDArray[np.int64]
    letters_L: npt.NDArray[np.int64]


def passages(tokens: Tokens, letters: int) -> Passages:
    """Lines and paragraphs of at least so many letters."""
    table = characters()
    lines = tokens.starts_L.size
    letters_L = np.zeros(lines, np.int64)
    room = 2 * lines
    hashes_P, documents_P = np.empty(room, np.uint64), np.empty(room, np.int64)
    firsts_P, stops_P = np.empty(room, np.int64), np.empty(room, np.int64)
    count = _passages(
        tokens.text_C, tokens.starts_L, tokens.ends_L, tokens.lines_D1, table.kinds, table.alpha, table.folded, letters,
        letters_L, hashes_P, documents_P, firsts_P, stops_P,
    )  # fmt: skip
    return Passages(
        hashes_P[:count].copy(), documents_P[:count].copy(), firsts_P[:count].copy(), stops_P[:count].copy(), letters_L
    )


def counted(documents_D: npt.NDArray[np.uint64], found: Passages) -> records.Records:
    """Each passage of a batch once: how many of its documents hold it, and the first of these."""
    held = np.empty(found.hashes_P.size, PASSAGE)
    held["key"], held["document"], held["count"] = found.hashes_P, documents_D[found.documents_P], 1
    held = held[np.lexsort((held["document"], held["key"]))]
    again = np.zeros(len(held), np.bool_)
    again[1:] = (held["key"][1:] == held["key"][:-1]) & (held["document"][1:] == held["document"][:-1])
    return summed(held[~again])


def summed(held: records.Records) -> records.Records:
    """Each passage once, from the counts of several batches or tasks."""
    if not len(held):
        return held
    held = held[np.argsort(held["key"], kind="stable")]
    begins = records.begins(held["key"])
    sums = held[begins]
    sums["document"] = np.minimum.reduceat(held["document"], begins)
    sums["count"] = np.add.reduceat(held["count"], begins)
    return sums


def write(folder: Path, batches: Sequence[records.Records]) -> None:
    """Write what `counted` told of the batches of a task."""
    records.write(folder / FILE, summed(np.concatenate([np.empty(0, PASSAGE), *batches])))


@dataclass(frozen=True)
class Count:
    """Task: find the passages of a range that at least so many documents hold."""

    passages: Sequence[Path]
    documents: int
    first: int
    stop: int


def count(task: Count, folder: Path) -> dict[str, Any]:
    """Write passages that are common, with the first document that holds each."""
    sums = summed(records.read(task.passages, task.first, task.stop, PASSAGE))
    common = sums[sums["count"] >= task.documents]
    records.write(folder / COMMON_FILE, common)
    return {"passages": len(sums), "common": len(common)}


@dataclass(frozen=True)
class Cuts:
    """What to cut out of a batch of documents.

    spans_S3   place of the document, first line and stop line, counted within it; ascending, and none touches another
    shares_D   of the letters of each document that go with them
    """

    spans_S3: npt.NDArray[np.int64]
    shares_D: npt.NDArray[np.float32]


def cuts(tokens: Tokens, documents_D: npt.NDArray[np.uint64], letters: int, common: Sequence[Path]) -> Cuts:
    """The lines of a batch that belong to common passages, where the document is not the first that holds them.

    Reads of the files that `count` wrote only what it looks up.
    """
    found = passages(tokens, letters)
    hashes, places = np.unique(found.hashes_P, return_inverse=True)
    firsts = np.full(hashes.size, np.iinfo(np.uint64).max)
    is_common = np.zeros(hashes.size, np.bool_)
    for path in common:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(stored):
            at = np.minimum(records.places_of(stored["key"], hashes), len(stored) - 1)
            here = stored["key"][at] == hashes
            is_common |= here
            firsts[here] = stored["document"][at[here]]
    goes_P = is_common[places] & (firsts[places] != documents_D[found.documents_P])
    goes_L = np.zeros(tokens.starts_L.size + 1, np.int64)
    np.add.at(goes_L, found.firsts_P[goes_P], 1)
    np.add.at(goes_L, found.stops_P[goes_P], -1)
    return _cuts(np.cumsum(goes_L[:-1]) > 0, tokens.lines_D1, found.letters_L)


def cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without these lines (first, stop), ascending; a blank line that then follows another goes, too."""
    lines = text.split("\n")
    for first, stop in reversed(spans):
        blank_before = first == 0 or not lines[first - 1].strip()
        while blank_before and stop < len(lines) and not lines[stop].strip():
            stop += 1
        del lines[first:stop]
    return "\n".join(lines)


def _cuts(goes_L: npt.NDArray[np.bool_], lines_D1: npt.NDArray[np.int64], letters_L: npt.NDArray[np.int64]) -> Cuts:
    documents_L = np.repeat(np.arange(lines_D1.size - 1), np.diff(lines_D1))
    before_L = np.append(False, goes_L[:-1]) & (np.diff(documents_L, prepend=-1) == 0)
    after_L = np.append(goes_L[1:], False) & (np.diff(documents_L, append=-1) == 0)
    firsts, lasts = np.flatnonzero(goes_L & ~before_L), np.flatnonzero(goes_L & ~after_L)
    documents = documents_L[firsts]
    spans_S3 = np.stack([documents, firsts - lines_D1[documents], lasts + 1 - lines_D1[documents]], axis=1)
    sums = np.concatenate([np.zeros((2, 1), np.int64), np.cumsum([letters_L, letters_L * goes_L], axis=1)], axis=1)
    all_D, gone_D = np.diff(sums[:, lines_D1])
    return Cuts(spans_S3, (gone_D / np.maximum(all_D, 1)).astype(np.float32))


@njit(cache=True, nogil=True)
def _passages(
    text_C: Array, starts_L: Array, ends_L: Array, lines_D1: Array, kinds: Array, alpha: Array, folded: Array,
    least: int,
    letters_L: Array, hashes_P: Array, documents_P: Array, firsts_P: Array, stops_P: Array,
) -> int:  # fmt: skip
    count = 0
    for d in range(lines_D1.size - 1):
        paragraph, paragraph_letters, begin = np.uint64(0), 0, lines_D1[d]
        for n in range(lines_D1[d], lines_D1[d + 1] + 1):
            line, letters, is_blank = np.uint64(0), 0, True
            if n < lines_D1[d + 1]:
                for at in range(starts_L[n], ends_L[n]):
                    character = text_C[at]
                    kind = kinds[character]
                    is_blank &= kind == BLANK
                    if kind in (LETTER, IDEOGRAPH) and folded[character] != 0:
                        letter = np.uint64(folded[character]) if alpha[character] else _DIGIT
                        line = (line + letter + np.uint64(1)) * OF_WORDS
                        paragraph = (paragraph + letter + np.uint64(1)) * OF_WORDS
                        letters += _IDEOGRAPH_LETTERS if kind == IDEOGRAPH else 1
                letters_L[n] = letters
                paragraph_letters += letters
                if letters >= least:
                    hashes_P[count], documents_P[count], firsts_P[count], stops_P[count] = mix(line), d, n, n + 1
                    count += 1
            if is_blank:
                if n - begin > 1 and paragraph_letters >= least:
                    hashes_P[count], documents_P[count] = mix(paragraph), d
                    firsts_P[count], stops_P[count] = begin, n
                    count += 1
                paragraph, paragraph_letters, begin = np.uint64(0), 0, n + 1
    return count

"""Which documents share a row, planned from their lengths alone.

Knows nothing of tokens, files or order. A document of n tokens (BOS and EOS included) fills n - 1 slots of a row: slot
k reads token k and predicts token k + 1. No slot is lost at a boundary, and every token but BOS is predicted exactly
once. What is longer than a row is split into pieces, the next of which starts with the last target of the one before.

Shape suffixes: D documents, P pieces, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A run of slots of one document."""

    document: int  # index into the lengths
    start: int  # first slot
    slots: int


@dataclass(frozen=True)
class Rows:
    """Pieces in the order of their rows; a row is the pieces between two ends."""

    documents_P: np.ndarray  # int64, index into the lengths
    starts_P: np.ndarray  # int64, first slot within the document
    slots_P: np.ndarray  # int64
    ends_R: np.ndarray  # int64, number of pieces up to and with each row

    def __len__(self) -> int:
        return len(self.ends_R)

    def pieces(self, row: int) -> Iterator[Piece]:
        """The pieces of a row, from its first slot on."""
        here = slice(int(self.ends_R[row - 1]) if row else 0, int(self.ends_R[row]))
        columns = (self.documents_P[here].tolist(), self.starts_P[here].tolist(), self.slots_P[here].tolist())
        return map(Piece, *columns)


def pack(lengths_D: np.ndarray, sequence_length: int, packing: str) -> Rows:
    """Rows of at most `sequence_length` slots that hold every slot of every document once.

    lengths_D  tokens of each document, BOS and EOS included (so at least 2)
    packing    best_fit: largest piece first, into the fullest row it fits (best-fit decreasing; Johnson, "Near-optimal
               bin packing algorithms", 1973); splits only what is longer than a row. concat: documents end to end, cut
               at every row. pad: a row for each piece.
    """
    slots_D = np.asarray(lengths_D, dtype=np.int64) - 1
    if packing == "concat":
        return _concat(slots_D, sequence_length)
    pieces = _pieces(slots_D, sequence_length)
    if packing == "pad":
        return Rows(*pieces, np.arange(1, len(pieces[0]) + 1))
    if packing == "best_fit":
        return _best_fit(*pieces, sequence_length)
    raise ValueError(f"packing={packing!r}")


def _pieces(slots_D: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents, starts and slots of the pieces, cut only where a document is longer than a row."""
    count_D = -(-slots_D // sequence_length)
    documents_P = np.repeat(np.arange(len(slots_D)), count_D)
    starts_P = (np.arange(len(documents_P)) - np.repeat(np.cumsum(count_D) - count_D, count_D)) * sequence_length
    return documents_P, starts_P, np.minimum(sequence_length, slots_D[documents_P] - starts_P)


def _concat(slots_D: np.ndarray, sequence_length: int) -> Rows:
    ends_D = np.cumsum(slots_D)
    total = int(ends_D[-1]) if len(ends_D) else 0
    cuts_P = np.union1d(ends_D - slots_D, np.arange(0, total, sequence_length))
    documents_P = np.searchsorted(ends_D, cuts_P, side="right")
    rows_P = cuts_P // sequence_length
    return Rows(
        documents_P,
        cuts_P - (ends_D - slots_D)[documents_P],
        np.diff(cuts_P, append=total),
        np.searchsorted(rows_P, np.arange(-(-total // sequence_length)), side="right"),
    )


def _best_fit(documents_P: np.ndarray, starts_P: np.ndarray, slots_P: np.ndarray, sequence_length: int) -> Rows:
    by_size_P = np.argsort(-slots_P, kind="stable")
    sizes, counts = np.unique(slots_P, return_counts=True)
    row_of: list[int] = []
    rows = 0
    by_free: list[list[int]] = [[] for _ in range(sequence_length)]  # rows with so many free slots
    occupied = 0  # bit f is set where by_free[f] has a row: the smallest free space that fits is one bit operation
    for slots, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            if fitting := occupied >> slots:
                free = slots + (fitting & -fitting).bit_length() - 1
                candidates = by_free[free]
                row = candidates.pop()
                if not candidates:
                    occupied ^= 1 << free
            else:
                free, row = sequence_length, rows
                rows += 1
            # What is left of the smallest space that fits is smaller still: the next of this size goes there, too.
            placed = min(count, free // slots)
            row_of += [row] * placed
            count -= placed
            if free := free - placed * slots:
                by_free[free].append(row)
                occupied |= 1 << free
    row_of_P = np.array(row_of, dtype=np.int64)
    order_P = by_size_P[np.argsort(row_of_P, kind="stable")]
    return Rows(
        documents_P[order_P], starts_P[order_P], slots_P[order_P], np.cumsum(np.bincount(row_of_P, minlength=rows))
    )

"""Which documents share a row, planned from their lengths alone.

Knows nothing of tokens, files or order. A document of n tokens (BOS and EOS included) fills n - 1 slots of a row: slot
k reads token k and predicts token k + 1. No slot is lost at a boundary, and every token but BOS is predicted exactly
once. What is longer than a row is split into pieces, the next of which starts with the last target of the one before.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A run of slots of one document."""

    document: int  # index into the lengths
    start: int  # first slot
    slots: int


Row = list[Piece]


def pack(lengths: np.ndarray, sequence_length: int, packing: str) -> list[Row]:
    """Rows of at most `sequence_length` slots that hold every slot of every document once.

    lengths   tokens of each document, BOS and EOS included (so at least 2)
    packing   best_fit: largest piece first, into the fullest row it fits (best-fit decreasing); splits only what is
              longer than a row. concat: documents end to end, cut at every row. pad: a row for each piece.
    """
    if packing == "concat":
        return _concat(lengths, sequence_length)
    pieces = [
        Piece(document, start, min(sequence_length, slots - start))
        for document, slots in enumerate((lengths - 1).tolist())
        for start in range(0, slots, sequence_length)
    ]
    if packing == "pad":
        return [[piece] for piece in pieces]
    if packing == "best_fit":
        return _best_fit(pieces, sequence_length)
    raise ValueError(f"packing={packing!r}")


def _concat(lengths: np.ndarray, sequence_length: int) -> list[Row]:
    rows: list[Row] = []
    free = 0
    for document, slots in enumerate((lengths - 1).tolist()):
        start = 0
        while start < slots:
            if free == 0:
                rows.append([])
                free = sequence_length
            taken = min(free, slots - start)
            rows[-1].append(Piece(document, start, taken))
            start += taken
            free -= taken
    return rows


def _best_fit(pieces: list[Piece], sequence_length: int) -> list[Row]:
    rows: list[Row] = []
    by_free: list[list[int]] = [[] for _ in range(sequence_length)]  # rows with so many free slots
    occupied = 0  # bit f is set where by_free[f] has a row: the smallest free space that fits is one bit operation
    for piece in sorted(pieces, key=lambda piece: -piece.slots):
        if fitting := occupied >> piece.slots:
            free = piece.slots + (fitting & -fitting).bit_length() - 1
            row = by_free[free].pop()
            if not by_free[free]:
                occupied ^= 1 << free
        else:
            free, row = sequence_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if free := free - piece.slots:
            by_free[free].append(row)
            occupied |= 1 << free
    return rows

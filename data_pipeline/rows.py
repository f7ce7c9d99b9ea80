"""Packed rows as the five arrays of a batch.

Knows nothing of where tokens lie or which rows are wanted. Shape suffixes: B rows, S positions per row, P runs of slots
of one document, or of padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """The runs of a row, side by side in lists.

    tokens    an array that holds the run; any that is long enough where it is left out
    at        index of its first input there; the target of its last slot stands at + slots
    slots
    left_out  numbers of the runs whose targets do not count
    """

    tokens: list[np.ndarray]
    at: list[int]
    slots: list[int]
    left_out: tuple[int, ...] = ()


class Arrays(NamedTuple):
    """See `batch.Batch`. `slots_P` is of each run, in the order of the positions, row after row."""

    tokens_BS: np.ndarray
    targets_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    weights_BS: np.ndarray
    slots_P: np.ndarray


def fill(rows: Iterable[Row], num_rows: int, sequence_length: int) -> Arrays:
    """The arrays of `num_rows` rows: those given, then empty ones. What no run covers is 0 throughout."""
    shape = (num_rows, sequence_length)
    nothing = np.zeros(sequence_length + 1, np.uint16)
    inputs: list[np.ndarray] = []  # views, one a run: numpy copies all of them in one call
    targets: list[np.ndarray] = []
    slots: list[int] = []
    segments: list[int] = []
    left_out: list[int] = []
    count = 0
    for row in rows:
        count += 1
        left_out += [len(slots) + run for run in row.left_out]
        inputs += [tokens[at : at + n] for tokens, at, n in zip(*row[:3], strict=True)]
        targets += [tokens[at + 1 : at + 1 + n] for tokens, at, n in zip(*row[:3], strict=True)]
        segments += range(1, len(row.slots) + 1)
        slots += row.slots
        if free := sequence_length - sum(row.slots):
            inputs.append(nothing[:free])
            targets.append(nothing[:free])
            segments.append(0)
            slots.append(free)
    empty = num_rows - count
    inputs += [nothing[:-1]] * empty
    targets += [nothing[:-1]] * empty
    segments += [0] * empty
    slots += [sequence_length] * empty

    slots_P, segments_P = np.array(slots, dtype=np.int64), np.array(segments, dtype=np.int32)
    weights_P = (segments_P > 0).astype(np.float32)
    weights_P[left_out] = 0
    starts_P = (np.cumsum(slots_P) - slots_P).astype(np.int32)
    positions = np.arange(num_rows * sequence_length, dtype=np.int32) - np.repeat(starts_P, slots_P)
    for padding in np.flatnonzero(segments_P == 0).tolist():
        positions[starts_P[padding] : starts_P[padding] + slots[padding]] = 0
    return Arrays(
        tokens_BS=np.concatenate(inputs, dtype=np.int64, casting="same_kind").reshape(shape),
        targets_BS=np.concatenate(targets, dtype=np.int64, casting="same_kind").reshape(shape),
        segments_BS=np.repeat(segments_P, slots_P).reshape(shape),
        positions_BS=positions.reshape(shape),
        weights_BS=np.repeat(weights_P, slots_P).reshape(shape),
        slots_P=slots_P,
    )

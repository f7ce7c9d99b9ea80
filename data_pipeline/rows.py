"""Packed rows as the five arrays of a batch.

Knows nothing of where tokens lie or which rows are wanted. Shape suffixes: B rows, S positions per row, P runs of slots
of one document, or of padding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """The runs of a row, side by side in lists.

    tokens    a buffer of tokens that holds the run; any that is long enough where it is left out
    at        index of its first input there; the target of its last slot stands at + slots
    slots
    left_out  numbers of the runs whose targets do not count
    """

    tokens: list[memoryview]
    at: list[int]
    slots: list[int]
    left_out: tuple[int, ...] = ()


class Arrays(NamedTuple):
    """See `batch.Batch`. `slots_P` of each run, in the order of the positions."""

    tokens_BS: np.ndarray
    targets_BS: np.ndarray
    segments_BS: np.ndarray
    positions_BS: np.ndarray
    weights_BS: np.ndarray
    slots_P: np.ndarray


def fill(rows: Sequence[Row], num_rows: int, sequence_length: int, dtype: np.dtype) -> Arrays:
    """The arrays of `num_rows` rows: those given, then empty ones. What no run covers is 0 throughout.

    `dtype` is that of the tokens in the buffers of all runs.
    """
    shape = (num_rows, sequence_length)
    nothing = np.zeros(sequence_length, dtype).data
    inputs: list[memoryview] = []  # one a run, all copied in one call: slices of buffers cost a third of numpy's
    targets: list[memoryview] = []
    slots: list[int] = []
    segments: list[int] = []
    left_out: list[int] = []
    padding: list[int] = []  # numbers of the runs that are none
    for row in rows:
        if row.left_out:
            left_out += [len(slots) + run for run in row.left_out]
        inputs += [tokens[at : at + n] for tokens, at, n in zip(row.tokens, row.at, row.slots)]  # noqa: B905  # hot
        targets += [tokens[at + 1 : at + 1 + n] for tokens, at, n in zip(row.tokens, row.at, row.slots)]  # noqa: B905
        slots += row.slots
        segments += range(1, len(row.slots) + 1)
        if free := sequence_length - sum(row.slots):
            padding.append(len(slots))
            inputs.append(nothing[:free])
            targets.append(nothing[:free])
            segments.append(0)
            slots.append(free)
    empty = num_rows - len(rows)
    padding += range(len(slots), len(slots) + empty)
    inputs += [nothing] * empty
    targets += [nothing] * empty
    segments += [0] * empty
    slots += [sequence_length] * empty

    slots_P, segments_P = np.array(slots, dtype=np.int64), np.array(segments, dtype=np.int32)
    starts_P = slots_P.cumsum() - slots_P
    positions = _count(num_rows * sequence_length) - starts_P.astype(np.int32).repeat(slots_P)
    for run in padding:
        start = int(starts_P[run])
        positions[start : start + slots[run]] = 0
    weights_P = np.ones(len(slots), np.float32)
    weights_P[padding + left_out] = 0
    return Arrays(
        tokens_BS=_joined(inputs, dtype).reshape(shape),
        targets_BS=_joined(targets, dtype).reshape(shape),
        segments_BS=segments_P.repeat(slots_P).reshape(shape),
        positions_BS=positions.reshape(shape),
        weights_BS=weights_P.repeat(slots_P).reshape(shape),
        slots_P=slots_P,
    )


def _joined(runs: list[memoryview], dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(b"".join(runs), dtype).astype(np.int64)


@functools.lru_cache(maxsize=2)
def _count(stop: int) -> np.ndarray:
    return np.arange(stop, dtype=np.int32)

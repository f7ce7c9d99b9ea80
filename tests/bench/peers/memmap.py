"""No loader: numpy fills the five arrays of a batch from a memory-mapped file of all tokens.

What a loader of packed rows is held against: this has nothing to open, verify, order or resume, and its rows are
planned and in memory before the clock starts. Windows of documents are packed best-fit, and the rows of each window
shuffled once, since best-fit leaves rows of one document first and rows of many last. Five arrays are made anew for
each batch, as a loader must.

Tried: a loop over the pieces that copies slices, one gather by computed indices, and one concatenation of slices; with
the targets read as the inputs are, or copied from them and mended at the end of each piece; with arrays of zeros, which
cost more than empty ones whose padding is cleared, as memory that was freed cannot be used again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data_pipeline.pack import pack
from tests.bench.peers.protocol import Batches, Documents, Variant, run

_WINDOW_DOCUMENTS = 8192  # packed together: 32 blocks of 256, the defaults of token shards
_PLAN = ("starts_P", "slots_P", "ends_R")


class Pieces(NamedTuple):
    """Rows of pieces. P pieces in the order of their rows, R rows."""

    starts_P: np.ndarray  # int64, first input among all tokens
    slots_P: np.ndarray  # int64
    ends_R: np.ndarray  # int64, number of pieces up to and with each row


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Fill = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int], Arrays]


def prepare(documents: Documents, out: Path, S: int) -> None:
    """The tokens as they are, and the rows."""
    out.mkdir(parents=True)
    np.save(out / "tokens.npy", documents.tokens)
    starts_D = np.cumsum(documents.lengths, dtype=np.int64) - documents.lengths
    shuffled = np.random.default_rng(0)
    starts, slots, counts = [], [], []
    for first in range(0, len(starts_D), _WINDOW_DOCUMENTS):
        window = slice(first, first + _WINDOW_DOCUMENTS)
        rows = pack(documents.lengths[window], S, "best_fit")
        starts_P = starts_D[window][rows.documents_P] + rows.starts_P
        order = shuffled.permutation(len(rows))
        counts_R = np.diff(rows.ends_R, prepend=0)[order]
        first_P = np.repeat((rows.ends_R - np.diff(rows.ends_R, prepend=0))[order], counts_R)
        within_P = np.arange(len(first_P)) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
        starts.append(starts_P[first_P + within_P])
        slots.append(rows.slots_P[first_P + within_P])
        counts.append(counts_R)
    plan = (np.concatenate(starts), np.concatenate(slots), np.cumsum(np.concatenate(counts)))
    for name, array in zip(_PLAN, plan, strict=True):
        np.save(out / f"{name}.npy", array)


def _filled(fill: Fill, out: Path, S: int, B: int) -> Batches:
    tokens = np.load(out / "tokens.npy", mmap_mode="r").view(np.ndarray)  # slices of np.memmap itself are slow
    starts_P, slots_P, ends_R = (np.load(out / f"{name}.npy") for name in _PLAN)
    begins_R = np.concatenate([[0], ends_R[:-1]])
    while True:
        for row in range(0, len(ends_R) - B + 1, B):
            begin, end = begins_R[row], ends_R[row + B - 1]
            ends_B = ends_R[row : row + B] - begin
            arrays = fill(tokens, starts_P[begin:end], slots_P[begin:end], ends_B, S, B)
            yield tuple(torch.from_numpy(array) for array in arrays)


def loop(tokens: np.ndarray, starts_P: np.ndarray, slots_P: np.ndarray, ends_B: np.ndarray, S: int, B: int) -> Arrays:
    """Copy the slices of each piece to their places."""
    inputs, targets = np.empty(B * S, np.int64), np.empty(B * S, np.int64)
    segments, positions = np.empty(B * S, np.int32), np.empty(B * S, np.int32)
    weights = np.ones(B * S, np.float32)
    counting = np.arange(S, dtype=np.int32)
    starts, slots = starts_P.tolist(), slots_P.tolist()
    at = piece = 0
    for row, end in enumerate(ends_B.tolist(), 1):
        for segment, (start, n) in enumerate(zip(starts[piece:end], slots[piece:end], strict=True), 1):
            stop = at + n
            inputs[at:stop] = tokens[start : start + n]
            targets[at:stop] = tokens[start + 1 : start + n + 1]
            segments[at:stop] = segment
            positions[at:stop] = counting[:n]
            at = stop
        if at < row * S:
            for array in (inputs, targets, segments, positions, weights):
                array[at : row * S] = 0
        at, piece = row * S, end
    return _shaped(B, inputs, targets, segments, positions, weights)


def gather(tokens: np.ndarray, starts_P: np.ndarray, slots_P: np.ndarray, ends_B: np.ndarray, S: int, B: int) -> Arrays:
    """Compute where each input lies and take all at once."""
    starts_P, slots_P, segments_P, weights_P = _with_padding(starts_P, slots_P, ends_B, S)
    offsets_P = np.cumsum(slots_P) - slots_P
    at = np.arange(B * S)
    at += np.repeat(starts_P - offsets_P, slots_P)
    inputs = tokens.take(at, mode="clip").astype(np.int64)  # clip: out of range is not checked for; nothing is
    return _completed(tokens, inputs, starts_P, slots_P, offsets_P, segments_P, weights_P, B)


def concatenate(
    tokens: np.ndarray, starts_P: np.ndarray, slots_P: np.ndarray, ends_B: np.ndarray, S: int, B: int
) -> Arrays:
    """Hand the slices of all pieces to one concatenation, which also widens them."""
    starts_P, slots_P, segments_P, weights_P = _with_padding(starts_P, slots_P, ends_B, S)
    offsets_P = np.cumsum(slots_P) - slots_P
    slices = [tokens[start : start + n] for start, n in zip(starts_P.tolist(), slots_P.tolist(), strict=True)]
    inputs = np.concatenate(slices, dtype=np.int64)
    return _completed(tokens, inputs, starts_P, slots_P, offsets_P, segments_P, weights_P, B)


def _completed(
    tokens: np.ndarray,
    inputs: np.ndarray,
    starts_P: np.ndarray,
    slots_P: np.ndarray,
    offsets_P: np.ndarray,
    segments_P: np.ndarray,
    weights_P: np.ndarray,
    B: int,
) -> Arrays:
    """The other arrays; targets are the inputs moved by one, but for the last of each piece."""
    targets = np.empty_like(inputs)
    targets[:-1] = inputs[1:]
    targets[offsets_P + slots_P - 1] = tokens[starts_P + slots_P]
    positions = np.arange(len(inputs), dtype=np.int32)
    positions -= np.repeat(offsets_P.astype(np.int32), slots_P)
    for piece in np.flatnonzero(segments_P == 0).tolist():
        for array in (inputs, targets, positions):
            array[offsets_P[piece] : offsets_P[piece] + slots_P[piece]] = 0
    return _shaped(B, inputs, targets, np.repeat(segments_P, slots_P), positions, np.repeat(weights_P, slots_P))


def _shaped(B: int, *arrays: np.ndarray) -> Arrays:
    return tuple(array.reshape(B, -1) for array in arrays)  # type: ignore[return-value]


def _with_padding(
    starts_P: np.ndarray, slots_P: np.ndarray, ends_B: np.ndarray, S: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Starts, slots, segments and weights of pieces, with one more piece for the unfilled end of each row."""
    begins_B = np.concatenate([[0], ends_B[:-1]])
    free_B = S - np.add.reduceat(slots_P, begins_B)
    segments_P = (np.arange(1, len(slots_P) + 1) - np.repeat(begins_B, ends_B - begins_B)).astype(np.int32)
    weights_P = np.ones(len(slots_P), np.float32)
    open_B = np.flatnonzero(free_B)
    if not len(open_B):
        return starts_P, slots_P, segments_P, weights_P
    at = ends_B[open_B]
    return (
        np.insert(starts_P, at, 0),
        np.insert(slots_P, at, free_B[open_B]),
        np.insert(segments_P, at, 0),
        np.insert(weights_P, at, 0),
    )


if __name__ == "__main__":
    run(
        prepare,
        {
            "loop": Variant(partial(_filled, loop), "five arrays, a loop that copies the slices of each piece"),
            "concatenate": Variant(partial(_filled, concatenate), "five arrays, one concatenation of slices"),
            "gather": Variant(partial(_filled, gather), "five arrays, one gather by computed indices"),
        },
    )

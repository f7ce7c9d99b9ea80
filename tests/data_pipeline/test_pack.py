"""Promises of packing: every slot of every document in exactly one row, none too long, hardly any empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.pack import Piece, Rows, pack

PACKINGS = ("best_fit", "concat", "pad")


def in_rows(packed: Rows) -> list[list[Piece]]:
    return [list(packed.pieces(row)) for row in range(len(packed))]


@given(
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=60),
    sequence_length=st.integers(1, 80),
    packing=st.sampled_from(PACKINGS),
)
def test_every_slot_is_in_exactly_one_row(lengths: list[int], sequence_length: int, packing: str) -> None:
    rows = in_rows(pack(np.array(lengths), sequence_length, packing))
    seen = sorted((p.document, p.start + k) for row in rows for p in row for k in range(p.slots))
    assert seen == [(document, slot) for document, length in enumerate(lengths) for slot in range(length - 1)]
    assert all(0 < sum(piece.slots for piece in row) <= sequence_length for row in rows)


@given(lengths=st.lists(st.integers(2, 200), min_size=1, max_size=60), sequence_length=st.integers(1, 80))
def test_what_each_packing_says_of_itself(lengths: list[int], sequence_length: int) -> None:
    tokens = np.array(lengths)
    slots = int((tokens - 1).sum())
    assert len(pack(tokens, sequence_length, "concat")) == -(-slots // sequence_length)  # no fewer rows exist
    assert all(len(row) == 1 for row in in_rows(pack(tokens, sequence_length, "pad")))
    for row in in_rows(pack(tokens, sequence_length, "best_fit")):
        for piece in row:  # only what is longer than a row is split
            assert lengths[piece.document] - 1 > sequence_length or piece.slots == lengths[piece.document] - 1


def test_best_fit_takes_the_smallest_space_that_fits() -> None:
    rows = in_rows(
        pack(np.array([9, 7, 3, 4]) + 1, 12, "best_fit")
    )  # 9, 7 open rows; 4 goes to 7 (free 5), 3 to 9 (free 3)
    assert [[piece.slots for piece in row] for row in rows] == [[9, 3], [7, 4]]


@pytest.mark.parametrize("sequence_length", [512, 2048, 8192])
def test_best_fit_fills_rows_of_lognormal_documents(sequence_length: int) -> None:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(6, 1.2, 16_384).astype(int), 2, None)
    rows = pack(lengths, sequence_length, "best_fit")
    assert (lengths - 1).sum() / (len(rows) * sequence_length) > 0.99


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_documents_make_no_rows(packing: str) -> None:
    assert len(pack(np.array([], dtype=np.int64), 8, packing)) == 0


def test_an_unknown_packing_is_an_error() -> None:
    with pytest.raises(ValueError, match="packing='first_fit'"):
        pack(np.array([3]), 4, "first_fit")

"""Promises of the skip list: ranges are passed over, documents are left out from their sample on, the past stands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.skips import Skip, Skips

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 15)).map(lambda r: (r[0], r[0] + r[1])), max_size=5)


@given(ranges=RANGES, start=st.integers(0, 80), count=st.integers(0, 60))
def test_advancing_is_counting_what_is_not_passed_over(ranges: list[tuple[int, int]], start: int, count: int) -> None:
    skips = Skips(Skip(0, samples=bounds) for bounds in ranges)
    read = [sample for sample in range(300) if not any(first <= sample < stop for first, stop in ranges)]
    assert skips.advance(start, count) == [sample for sample in read if sample >= start][count]
    assert skips.passed(start) == len([sample for sample in read if sample < start])
    assert [sample for sample in range(100) if not skips.leaves_out(sample)] == [s for s in read if s < 100]


def test_a_document_is_left_out_from_its_sample_on() -> None:
    skips = Skips([Skip(50, "m", 3, (7, 9)), Skip(80, "m", 3, (8,)), Skip(90, "m", 3)])
    assert skips.of_block("m", 3, 49) == set()
    assert skips.of_block("m", 3, 50) == {7, 9}
    assert skips.of_block("m", 3, 80) == {7, 8, 9}
    assert skips.of_block("m", 3, 90) is None  # all of it
    assert skips.of_block("m", 4, 99) == skips.of_block("other", 3, 99) == set()


def test_the_digest_holds_what_had_a_part_and_nothing_later() -> None:
    early, late = Skip(10, "m", 1, (2,)), Skip(100, samples=(100, 120))
    assert Skips([early]).sha256(60) == Skips([early, late]).sha256(60) == Skips([early, late]).sha256(100)
    assert Skips([early]).sha256(101) != Skips([early, late]).sha256(101)
    assert Skips([early]).sha256(10) == Skips([]).sha256(10)


@given(
    st.one_of(
        st.builds(
            Skip, st.integers(0, 9), st.text(max_size=3), st.integers(0, 9), st.lists(st.integers(0, 9)).map(tuple)
        ),
        st.builds(lambda f, a: Skip(f, samples=(f + a, f + a + 1)), st.integers(0, 9), st.integers(0, 9)),
    )
)
def test_an_entry_survives_its_file(entry: Skip) -> None:
    import json

    assert Skip.from_json(json.loads(json.dumps(vars(entry) | {"reason": "x", "time": 1.5}))) == entry

"""Texts that differ only in Unicode form or white space are one text; the first survives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.dedup import ExactDuplicates, fingerprint


def test_unicode_form_and_white_space_do_not_matter() -> None:
    assert fingerprint("Café  au\tlait\n") == fingerprint("Cafe\u0301 au lait")
    assert fingerprint("Café au lait") != fingerprint("café au lait")


def test_the_first_survives() -> None:
    duplicates = ExactDuplicates()
    assert [duplicates.repeats(fingerprint(text)) for text in ("a b", "a  b", "c", "a b")] == [False, True, False, True]


@given(st.lists(st.text("abc \n", max_size=4)))
def test_survivors_are_the_distinct_texts(texts: list[str]) -> None:
    duplicates = ExactDuplicates()
    kept = [text for text in texts if not duplicates.repeats(fingerprint(text))]
    assert [" ".join(text.split()) for text in kept] == list(dict.fromkeys(" ".join(text.split()) for text in texts))

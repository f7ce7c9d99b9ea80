"""Promises of the changes: what differs, the largest first, and nothing from what cannot be compared."""

from __future__ import annotations

from typing import Any

import pytest

from conf.exits import DataError
from data_pipeline.card.changes import changes


def card(**other: Any) -> dict[str, Any]:
    counts = {
        "documents_kept": 10, "bytes_kept": 1000, "dropped": {"toxic": 3, "empty": 1}, "languages": {"en": 8, "de": 2},
        "sources": {"web": {"documents_kept": 9}, "wiki": {"documents_kept": 1}},
    }  # fmt: skip
    config = {"languages": [], "harm": {"most_words": 20}, "sources": [{"name": "web", "paths": ["a"]}]}
    return {"format": 2, "lineage": "0" * 64, "counts": counts | other, "config": config}


def test_equal_cards_have_no_changes() -> None:
    found = changes(card(), card())
    assert found == {
        "lineage": "0" * 64, "documents_kept": [10, 10], "bytes_kept": [1000, 1000], "config": [], "sources": {},
        "dropped": {}, "languages": {},
    }  # fmt: skip


def test_what_differs_is_told_with_both_values_the_largest_first() -> None:
    now = card(
        documents_kept=31, bytes_kept=900, dropped={"toxic": 4, "near_duplicate": 7}, languages={"en": 30, "fr": 1},
        sources={"web": {"documents_kept": 9}, "books": {"documents_kept": 22}},
    )  # fmt: skip
    now["config"] = {"languages": ["en"], "harm": {"most_words": None}, "sources": [{"name": "web", "paths": ["b"]}]}
    found = changes(card(), now)
    assert list(found["sources"].items()) == [("books", [0, 22]), ("wiki", [1, 0])]
    assert list(found["dropped"].items()) == [("near_duplicate", [0, 7]), ("empty", [1, 0]), ("toxic", [3, 4])]
    assert list(found["languages"].items()) == [("en", [8, 30]), ("de", [2, 0]), ("fr", [0, 1])]
    assert (found["documents_kept"], found["bytes_kept"]) == ([10, 31], [1000, 900])
    assert found["config"] == [
        "curate.languages was [], is ['en']",
        "curate.harm.most_words was 20, is None",
        "curate.sources[0].paths was ['a'], is ['b']",
    ]


def test_a_card_of_format_1_is_compared_by_what_both_have() -> None:
    before = card(documents_kept=4, dropped={"gopher_too_few_words": 6}) | {"format": 1}
    before["config"] = {"min_words": 50, "languages": ["en"], "part_bytes": 1}
    found = changes(before, card())
    assert found["documents_kept"] == [4, 10]
    assert found["dropped"] == {"gopher_too_few_words": [6, 0], "toxic": [0, 3], "empty": [0, 1]}
    assert found["config"] == ["curate.languages was ['en'], is []"]


@pytest.mark.parametrize("other", [3, "2", None])
def test_other_formats_are_refused(other: object) -> None:
    with pytest.raises(DataError, match=rf"has format {other!r}, this version compares with 1 and 2: name a folder"):
        changes(card() | {"format": other}, card())


def test_what_is_no_card_is_refused() -> None:
    with pytest.raises(DataError, match="lacks config, counts: name a folder that `curate` wrote"):
        changes({"format": 1, "lineage": "0"}, card())

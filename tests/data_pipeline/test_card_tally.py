"""Promises of the tally: the same bytes whatever was counted first, sums that add up, no text of what does harm."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.card.reasons import KEPT, REASONS
from data_pipeline.card.tally import EXCERPT, SAMPLES, Tally
from data_pipeline.private.found import KINDS
from tests.data_pipeline.invented_card import PROHIBITED, SOURCES, documents, row

HARM = {"blocked_url", "blocked_domain", "blocked_text", "prohibited", "toxic", "bad_words"}


def written(tally: Tally) -> str:
    """Every byte that comes out of it, in the order in which it comes."""
    return json.dumps([tally.to_json(), tally.card_values()], ensure_ascii=False)


@st.composite
def counted(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of `Tally.add`; few names, so that most of them meet."""
    text = draw(st.text("aä \n川", max_size=2 * EXCERPT))
    columns = {
        "license": draw(st.sampled_from(["", "MIT", "CC0"])),
        "quality": draw(st.none() | st.floats(0, 1) | st.just(float("nan"))),
        "exact_copies": draw(st.integers(1, 9)),
        "near_copies": draw(st.integers(1, 9)),
        "cut_characters": draw(st.integers(0, 2)),
        "scrubbed_email": draw(st.integers(0, 2)),
    }
    one = row(draw(st.text("ab", max_size=3)), text, draw(st.sampled_from(["", "en", "de"])), **columns)
    reason = draw(st.sampled_from(["", "empty", "toxic", "near_duplicate"]))
    return one, reason, draw(st.integers(0, 5000)), draw(st.sampled_from(["a", "b"]))


@given(st.lists(counted(), max_size=24), st.randoms(use_true_random=False))
def test_tallies_add_up_to_the_same_bytes_in_any_order(them: list[tuple[Any, ...]], draw: Any) -> None:
    whole = Tally()
    for one in them:
        whole.add(*one)
    whole.prohibited("b", 2)
    draw.shuffle(them)
    parts = [Tally() for _ in range(4)]
    for one in them:
        draw.choice(parts).add(*one)
    draw.choice(parts).prohibited("b", 2)
    draw.shuffle(parts)
    merged = Tally()
    for part in parts:
        merged.merge(Tally.from_json(json.loads(json.dumps(part.to_json()))))
    assert written(merged) == written(whole)


def test_every_document_counts_once_in_every_table() -> None:
    tally = Tally()
    given_ = list(documents(2000, seed=1))
    for one in given_:
        tally.add(*one)
    tally.prohibited(SOURCES[0], PROHIBITED)
    values = tally.card_values()
    counts, funnel, languages = values["counts"], values["funnel"], values["languages"]
    assert counts["documents_in"] == 2000 + PROHIBITED
    assert counts["documents_kept"] == sum(1 for _, reason, *_ in given_ if not reason)
    assert counts["bytes_in"] == sum(extracted for _, _, extracted, _ in given_)
    assert counts["bytes_kept"] == sum(len(one["text"].encode()) for one, reason, *_ in given_ if not reason)
    assert sum(step["documents"] for step in funnel) + counts["documents_kept"] == counts["documents_in"]
    assert {step["reason"]: step["documents"] for step in funnel} == counts["dropped"]
    assert [step["reason"] for step in funnel] == [reason for reason in REASONS if reason in counts["dropped"]]
    assert sum(values["lengths"]["in"].values()) == 2000  # nothing but their number is known of the prohibited
    assert sum(one["documents_in"] for one in languages.values()) == 2000
    for kept in (
        sum(one["documents_kept"] for one in languages.values()), sum(counts["languages"].values()),
        sum(one["documents"] for one in values["licenses"].values()), sum(values["lengths"]["kept"].values()),
        sum(values["quality"].values()),
    ):  # fmt: skip
        assert kept == counts["documents_kept"]
    for key in ("documents_in", "documents_kept", "bytes_in", "bytes_kept"):
        assert sum(one[key] for one in counts["sources"].values()) == counts[key]
    for one in counts["sources"].values():
        assert one["documents_in"] == one["documents_kept"] + sum(one["dropped"].values())


def test_what_a_document_stands_for_and_lost_is_counted() -> None:
    tally = Tally()
    tally.add(row("alone", "x" * 1023), "", 1024, "s")
    tally.add(row("one of two", "x" * 1024, exact_copies=2, scrubbed_iban=3), "", 2048, "s")
    tally.add(row("of seven", "x", exact_copies=3, near_copies=5, cut_characters=40, scrubbed_iban=1), "", 90, "s")
    tally.add(row("gone", "y", exact_copies=9, scrubbed_iban=5, cut_characters=9, quality=0.5), "toxic", 0, "s")
    values = tally.card_values()
    assert values["duplicates"] == {"exact": 0, "near": 0, "clusters": {"2": 1, "4": 1}}
    assert values["lines"] == {"documents": 1, "characters": 40}
    assert values["lengths"] == {"in": {"0": 1, "64": 1, "1024": 1, "2048": 1}, "kept": {"1": 1, "512": 1, "1024": 1}}
    assert values["counts"]["scrubbed"] == {**dict.fromkeys(KINDS, 0), "iban": 4}
    assert values["scrubbed_documents"] == {**dict.fromkeys(KINDS, 0), "iban": 2}
    assert values["quality"] == {}


def test_samples_are_those_of_the_smallest_hashes() -> None:
    tally = Tally()
    names = [f"document {n}" for n in range(99)]
    for name in names:
        tally.add(row(name, "first line\n\n  second  line " + "x" * EXCERPT), "", 1, "s")
    expected = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:SAMPLES]
    samples = tally.card_values()["samples"]
    assert [sample["id"] for sample in samples[KEPT]] == expected
    assert samples[KEPT][0]["excerpt"].startswith("first line second line xxx")
    assert len(samples[KEPT][0]["excerpt"]) <= EXCERPT


def test_what_does_harm_leaves_no_text() -> None:
    tally = Tally()
    for reason in REASONS:
        if reason == "prohibited":
            tally.prohibited("s", 1)
        else:
            tally.add(row(f"a {reason}", f"SECRET {reason}"), reason, 9, "s")
    values = tally.card_values()
    assert {step["reason"]: step["bytes"] for step in values["funnel"]}["prohibited"] == 0
    assert "prohibited" not in values["samples"]
    for reason, shown in values["samples"].items():
        assert [sample["excerpt"] for sample in shown] == [("" if reason in HARM else f"SECRET {reason}")]
    for reason in HARM:
        assert f"SECRET {reason}" not in written(tally)
    assert {reason for reason, decision in REASONS.items() if decision.harm} == HARM


def test_a_reason_that_nobody_explains_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'taste' is not explained: add it to data_pipeline/card/reasons.py"):
        Tally().add(row("a", "b"), "taste", 1, "s")

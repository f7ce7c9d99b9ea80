"""Limits of a language follow its reference set, in any order of its documents, and come back from JSON unchanged."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import signals
from data_pipeline.signals.calibrate import (
    CALIBRATED,
    FEWEST_DOCUMENTS,
    Calibrated,
    Way,
    beyond,
    calibrate,
    dump,
    find_stop_words,
    load,
)
from data_pipeline.signals.thresholds import FINEWEB2, Gopher, Repetition, Thresholds, broken, reasons, rules
from data_pipeline.signals.tokens import Tokens

GERMAN = (
    "die alte Mühle steht am Fluss und die Leute aus dem Dorf lassen dort das Korn mahlen , "
    "der Müller hört das Rad und die Kinder fischen , das Wehr ist alt und der Weg ist weit . "
)


def columns(seed: int, documents: int = 400, **shift: float) -> dict[str, np.ndarray]:
    """Values of good documents, normal around 0.05 (or 5 characters a word), moved as asked for."""
    draw = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, described in signals.COLUMNS.items():
        middle = {"mean_word_length": 5.0, "alphabetic_words": 0.9, "line_punctuation": 0.7}.get(name, 0.05)
        values = middle + shift.get(name, 0) + draw.normal(0, middle / 10, documents)
        found[name] = np.full(documents, 300) if described.dtype == "int32" else np.abs(values).astype(np.float32)
    return found


def limits(thresholds: Thresholds) -> dict[tuple[str, bool], float]:
    return {(rule.column, rule.least): rule.limit for rule in rules(thresholds)}


def test_a_tail_of_the_reference_set_breaks_each_limit() -> None:
    reference = columns(0)
    found = calibrate(reference, "de", ("der", "die"), tail=0.1)
    assert (found.documents, found.stop_words) == (400, ("der", "die"))
    moved = limits(found.thresholds)
    for rule in rules(found.thresholds):
        if rule.column in CALIBRATED:
            share = broken(reference[rule.column], rule).mean()
            assert 0.05 < share <= 0.1, rule  # rounding to three decimals keeps a few more
        else:
            assert moved[rule.column, rule.least] == limits(FINEWEB2)[rule.column, rule.least]
    assert {column for column, _ in moved} >= CALIBRATED


@pytest.mark.parametrize("way", ["quantile", "deviation"])
def test_english_limits_are_moved_as_far_as_the_language_lies_from_english(way: Way) -> None:
    """German words are two characters longer here, and its limits follow; what is alike keeps its limit."""
    english, german = columns(1, 2000), columns(2, 2000, mean_word_length=2.0)
    english["mean_word_length"][:20] = 12.0  # some break the limit of 10
    german["mean_word_length"][:20] = 14.0
    moved = limits(calibrate(german, "de", (), way=way, english=english).thresholds)
    assert 10.5 < moved["mean_word_length", False] <= 14.0
    if way == "deviation":
        assert moved["duplicate_lines", False] == pytest.approx(0.3, rel=0.1)
        assert moved["mean_word_length", True] == pytest.approx(3 + 2, rel=0.1)


def test_the_english_reference_gives_english_limits_back() -> None:
    english = columns(1, 1000)
    moved = limits(calibrate(english, "nl", (), way="deviation", english=english).thresholds)
    for key, limit in limits(FINEWEB2).items():
        assert moved[key] == pytest.approx(limit, abs=0.0011), key


def test_a_column_without_values_keeps_its_limit() -> None:
    chinese = columns(3)
    for name in ("mean_word_length", "alphabetic_words"):
        chinese[name][:] = np.nan
    found = calibrate(chinese, "zh", ()).thresholds
    assert found.gopher == Gopher()


def test_reference_sets_that_say_too_little_are_refused() -> None:
    few = columns(0, FEWEST_DOCUMENTS - 1)
    with pytest.raises(ValueError, match="reference set of de holds 99 documents: limits need at least 100"):
        calibrate(few, "de", ())
    with pytest.raises(ValueError, match="needs the columns of an English reference set"):
        calibrate(columns(0), "de", (), way="quantile")
    with pytest.raises(ValueError, match="reference set of en holds 99"):
        calibrate(columns(0), "de", (), way="deviation", english=few)


@given(st.permutations(range(120)), st.sampled_from(["tail", "quantile", "deviation"]))
@settings(deadline=None, max_examples=20)
def test_the_order_of_documents_does_not_matter(order: list[int], way: Way) -> None:
    reference = columns(4, 120)
    shuffled = {name: values[order] for name, values in reference.items()}
    english = columns(5)
    assert calibrate(reference, "de", (), way=way, english=english) == calibrate(
        shuffled, "de", (), way=way, english=english
    )


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.floats(0, 0.99), st.booleans())
def test_no_more_than_the_share_lies_beyond(values: list[float], share: float, least: bool) -> None:
    array = np.array(values, np.float32)
    limit = beyond(array, share, least)
    assert ((array < limit) if least else (array > limit)).mean() <= share


# ---- stop words ------------------------------------------------------------------------------------------------------


def test_stop_words_are_the_most_frequent_words_in_lower_case() -> None:
    texts = [GERMAN] * 30 + ["Mühle Korn Rad " * 20]
    found = find_stop_words(texts)
    assert found[:3] == ("das", "die", "und")  # three times each, in the order of the alphabet
    assert {"der", "ist", "am", "aus"} <= set(found)
    assert not {",", ".", "Mühle", "Die"} & set(found)
    assert found == find_stop_words(reversed(texts))


def test_rarer_words_are_taken_where_few_are_frequent() -> None:
    rare = [f"w{letter}" for letter in "abcdefghijkl"]
    words = ["oft"] * 50 + [name for name in rare for _ in range(5)] + [f"x{n}x" for n in range(1000)]
    assert find_stop_words([" ".join(words)]) == ("oft", *rare)  # 0.45 % each
    assert find_stop_words(["oft " * 100 + " ".join(f"x{n}x" for n in range(900))]) == ("oft",)
    assert find_stop_words([]) == ()


def test_calibrated_stop_words_are_counted() -> None:
    words = find_stop_words([GERMAN] * 30)
    found = signals.measure(Tokens.of([GERMAN, "mill river wheel"]), ["de", "de"], {"de": words})["stop_words"]
    assert found[0] >= 8
    assert found[1] == 0


# ---- JSON ------------------------------------------------------------------------------------------------------------


def calibrated() -> dict[str, Calibrated]:
    return {
        "de": calibrate(columns(0), "de", ("der", "für")),
        "cs": Calibrated(Thresholds(gopher=None, repetition=Repetition(max_top_2_gram=None)), (), 100),
    }


def test_json_gives_back_what_was_written() -> None:
    found = calibrated()
    text = dump(found)
    assert load(text) == found
    assert dump(dict(reversed(found.items()))) == text
    texts = [GERMAN * 3, "kurz"]
    measured = signals.measure(Tokens.of(texts), ["de", "de"], {"de": ("der", "die")})
    limits_of = {language: one.thresholds for language, one in load(text).items()}
    assert reasons(measured, ["de", "de"], limits_of)[1] == "gopher_too_few_words"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format=99), "format 99 of calibrated limits, this version reads up to 1"),
        (lambda content: content.pop("languages"), "the key languages is missing"),
        (lambda content: content["languages"]["de"].pop("documents"), "de: needs the keys documents"),
        (lambda content: content["languages"]["de"].update(stop_words="der"), "de: stop_words is no list of words"),
        (lambda content: content["languages"]["de"]["thresholds"].update(goper={}), "de: thresholds names other rule"),
        (
            lambda content: content["languages"]["de"]["thresholds"]["gopher"].update(min_word=3),
            "de: thresholds.gopher holds other limits than",
        ),
        (
            lambda content: content["languages"]["de"]["thresholds"]["gopher"].update(min_words="fifty"),
            "de: thresholds.gopher.min_words is no number",
        ),
        (
            lambda content: content["languages"]["de"]["thresholds"]["gopher"].update(min_words=True),
            "de: thresholds.gopher.min_words is no number",
        ),
        (
            lambda content: content["languages"]["de"]["thresholds"]["gopher"].update(min_words=float("nan")),
            "de: thresholds.gopher.min_words is no number",
        ),
        (
            lambda content: content["languages"]["de"]["thresholds"].update(c4={"terminal_punctuation": 0}),
            "de: thresholds.c4.terminal_punctuation is neither true nor false",
        ),
        (lambda content: content["languages"]["de"].update(documents=None), "de: documents is no count"),
        (lambda content: content["languages"]["de"].update(documents="400"), "de: documents is no count"),
        (lambda content: content.update(format="1"), "format '1' of calibrated limits"),
    ],
)
def test_json_that_is_something_else_is_refused(change: Any, message: str) -> None:
    content = json.loads(dump(calibrated()))
    change(content)
    with pytest.raises(ValueError, match=message):
        load(json.dumps(content))
    with pytest.raises(ValueError, match="not JSON"):
        load("{")


def test_every_limit_is_written() -> None:
    written = json.loads(dump(calibrated()))["languages"]["de"]["thresholds"]
    assert set(written["gopher"]) == {field.name for field in dataclasses.fields(Gopher)}

"""Each rule judges by its own limit, the first that is broken is the reason, and languages have limits of their own."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import signals
from data_pipeline.signals.thresholds import (
    C4,
    DEFAULTS,
    FINEWEB2,
    OTHERS,
    SETS,
    Gopher,
    RefinedWeb,
    Rule,
    Thresholds,
    broken,
    quality,
    reasons,
    rules,
    stricter,
)
from data_pipeline.signals.tokens import Tokens
from tests.data_pipeline.rule_texts import PAIRS

GOOD = "\n".join(
    [
        "The old mill stands by the river, and people of the village come to have their grain ground.",
        "A wheel of oak turns in the water all day, and its noise can be heard as far as the church.",
        "In winter the river freezes, so that the wheel stands still and the miller mends his tools.",
        "Children fish from the weir. Their mothers call them home when it gets dark!",
        "Who built the mill, and when, is not known; the oldest beam bears a date that nobody can read.",
    ]
)
EVERY = Thresholds(c4=C4(terminal_punctuation=True, min_paragraphs=3), refinedweb=RefinedWeb())
RULES = rules(EVERY)
compiled = settings(deadline=None)  # the first example waits for the compiler


def reason(text: str, language: str = "en", thresholds: dict[str, Thresholds] | None = None) -> str:
    columns = signals.measure(Tokens.of([text]), [language])
    return reasons(columns, [language], DEFAULTS if thresholds is None else thresholds)[0]


def alone(rule: str) -> dict[str, Thresholds]:
    """Limits that have only this rule on, at its default."""
    name, _, limit = rule.partition("_")
    default = SETS[name](min_paragraphs=3) if name == "c4" else SETS[name]()
    words = {"too_few_words": "min_words", "too_many_words": "max_words"}.get(limit)
    on = {words} if words else {f"min_{limit}", f"max_{limit}"}
    limits = {
        field.name: getattr(default, field.name) if field.name in on else None for field in dataclasses.fields(default)
    }
    if name == "c4":
        limits["terminal_punctuation"] = False
    off: dict[str, Any] = dict.fromkeys(SETS)
    return {OTHERS: Thresholds(**off | {name: SETS[name](**limits)})}


def kept_columns() -> dict[str, np.ndarray]:
    """A document at the limit of every rule but for columns with two limits, where it stands between them."""
    columns = {name: np.ones(1, described.dtype) for name, described in signals.COLUMNS.items()}
    for rule in RULES:
        columns[rule.column][0] = rule.limit
    columns["words"][0] = 50
    return columns


def break_limit(columns: dict[str, np.ndarray], rule: Rule) -> None:
    """Put the next number beyond a limit into its column."""
    value, away = columns[rule.column].dtype.type(rule.limit), -1 if rule.least else 1
    columns[rule.column][0] = (
        np.nextafter(value, away * np.float32(np.inf)) if value.dtype == np.float32 else value + away
    )


def test_prose_breaks_no_rule() -> None:
    every = dataclasses.replace(EVERY, c4=C4(terminal_punctuation=True))
    assert (reason(GOOD), reason(GOOD, "en", {OTHERS: every})) == ("", "")


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.reason}-{'least' if rule.least else 'most'}")
def test_a_limit_is_kept_by_what_meets_it_and_broken_by_the_next_number(rule: Rule) -> None:
    columns = kept_columns()
    assert reasons(columns, ["en"], {"en": EVERY}) == [""]
    break_limit(columns, rule)
    asked_first = next(one.reason for one in RULES if one.column == rule.column and one.least == rule.least)
    assert reasons(columns, ["en"], {"en": EVERY}) == [asked_first]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.rule)
def test_texts_at_and_beside_each_limit(pair: Any) -> None:
    """The texts on which datatrove and we agree; its rule of symbols is two of ours."""
    ended = pair.rule.startswith("c4_ended_")
    for rule in {"gopher_symbols": ("gopher_hashes", "gopher_ellipses")}.get(pair.rule, (pair.rule,)):
        limits = alone(rule.replace("_ended", ""))
        if ended:
            c4 = dataclasses.replace(limits[OTHERS].c4 or C4(), terminal_punctuation=True)
            limits = {OTHERS: dataclasses.replace(limits[OTHERS], c4=c4)}
        assert reason(pair.keeps, "en", limits) == ""
        if pair.rule != "gopher_symbols" or (rule == "gopher_hashes") == ("#" in pair.breaks):
            assert reason(pair.breaks, "en", limits) == rule.replace("_ended", "")


@pytest.mark.parametrize(
    ("rule", "keeps", "breaks"),
    [
        ("refinedweb_symbols", "oak " * 20 + "#a #b", "oak " * 20 + "#a #b . . ."),
        ("refinedweb_bullet_lines", "oak\n" + "● oak\n" * 8 + "* oak", "oak\n" + "● oak\n" * 9 + "* oak"),
        ("refinedweb_ellipsis_lines", "oak\n" * 7 + "oak . . .\n" * 2 + "oak…", "oak\n" * 6 + "oak. . .\n" * 3),
        ("refinedweb_other_words", "oak " * 8 + "1 2", "oak " * 8 + "1 2 3"),
        ("refinedweb_stop_words", "The oak the", "The oak theme"),
        ("refinedweb_mean_word_length", "oak " * 9 + "oak", "oak " * 9 + "of"),
        ("refinedweb_removed_words", "oak " * 19 + "\nALONE", "oak " * 18 + "\nALONE"),
        ("refinedweb_too_few_words", "oak " * 49 + "oak", "oak " * 48 + "oak"),
    ],
)  # fmt: skip
def test_refinedweb_has_limits_of_its_own(rule: str, keeps: str, breaks: str) -> None:
    assert reason(keeps, "en", alone(rule)) == ""
    assert reason(breaks, "en", alone(rule)) == rule


# ---- sets, order and languages ---------------------------------------------------------------------------------------


def test_the_first_rule_that_is_broken_is_the_reason() -> None:
    """The sets in their order, and rules in theirs: each is broken beside all that come after it."""
    of_sets = [next(name for name in SETS if rule.reason.startswith(f"{name}_")) for rule in RULES]
    assert of_sets == sorted(of_sets, key=list(SETS).index)
    columns, seen = kept_columns(), [rule.column for rule in RULES]
    for rule in reversed(RULES):
        if seen.count(rule.column) == 1:
            break_limit(columns, rule)
            assert reasons(columns, ["en"], {OTHERS: EVERY}) == [rule.reason]


def test_rule_sets_can_be_switched() -> None:
    listed = "\n".join(f"oak {name}" for name in dir(str) if name.isalpha())
    found = []
    limits = Thresholds()
    for name in ("gopher", "repetition", "c4", "fineweb"):
        found.append(reason(listed, "en", {"en": limits}))
        limits = dataclasses.replace(limits, **{name: None})
    assert found == ["gopher_stop_words", "c4_sentences", "c4_sentences", "fineweb_line_punctuation"]
    assert reason(listed, "en", {"en": limits}) == ""


def test_reasons_are_those_of_each_document_alone() -> None:
    texts = [text for pair in PAIRS for text in (pair.keeps, pair.breaks)]
    languages = ["en", "de", "ja", "und"] * (len(texts) // 4) + ["en"] * (len(texts) % 4)
    columns = signals.measure(Tokens.of(texts), languages)
    together = reasons(columns, languages)
    assert together == [reason(text, language) for text, language in zip(texts, languages, strict=True)]
    assert len(set(together)) >= 10


def test_other_languages_have_fineweb2s_limits() -> None:
    assert DEFAULTS["en"] == Thresholds()
    assert DEFAULTS[OTHERS] == FINEWEB2
    differing = {rule.reason for rule in rules(Thresholds())} - {rule.reason for rule in rules(FINEWEB2)}
    assert differing == {
        "repetition_duplicate_paragraphs", "repetition_duplicate_paragraph_characters",
        "repetition_duplicate_line_characters", "c4_lorem_ipsum", "c4_curly_brackets", "c4_sentences",
        "fineweb_short_lines",
    }  # fmt: skip
    repeated = {rule.reason: rule.limit for rule in rules(FINEWEB2)}["fineweb_repeated_line_characters"]
    assert repeated == 0.1
    curly = GOOD + "\nThe miller said: { this is no page of prose }."
    assert (reason(curly), reason(curly, "sv")) == ("c4_curly_brackets", "")


def test_a_language_can_have_limits_of_its_own() -> None:
    german = "Die alte Mühle steht am Fluss, und die Leute aus dem Dorf lassen dort ihr Korn mahlen."
    limits = {**DEFAULTS, "de": Thresholds(gopher=Gopher(min_words=10), repetition=None, c4=None)}
    assert reason(german, "de", limits) == ""
    assert reason(german, "nl", limits) == "gopher_too_few_words"


def test_a_language_without_limits_is_an_error() -> None:
    with pytest.raises(KeyError, match=re.escape(OTHERS)):
        reason(GOOD, "de", {"en": Thresholds()})


# ---- what makes no sense does not apply ------------------------------------------------------------------------------


def test_stop_words_are_asked_of_languages_that_have_a_list() -> None:
    german = "\n".join(f"Die alte Mühle Nummer {n} steht am Fluss, das Dorf mahlt hier Korn." for n in "abcdefgh")
    assert reason(german, "de", alone("gopher_stop_words")) == ""
    assert reason(german, "en", alone("gopher_stop_words")) == "gopher_stop_words"


def test_scripts_without_blanks_are_judged_by_their_length_alone() -> None:
    japanese = "\n".join(
        [
            "古い水車小屋が川のほとりに立っていて、村の人々は穀物を挽いてもらうためにそこへ来ます。",
            "樫の木の輪は一日中水の中で回り、その音は教会まで聞こえると言われています。",
            "冬になると川が凍り、輪は止まり、粉屋は静かな部屋で古い道具を直します。",
        ]
    )
    assert reason(japanese, "ja") == ""
    assert reason(japanese[:40], "ja") == "gopher_too_few_words"
    assert reason(japanese, "ja", {OTHERS: EVERY}) == "c4_sentences"


# ---- quality ---------------------------------------------------------------------------------------------------------


@compiled
@given(st.lists(st.text(), max_size=4), st.sampled_from(["en", "de", "ja"]))
def test_quality_lies_between_0_and_1(texts: list[str], language: str) -> None:
    found = quality(signals.measure(Tokens.of(texts), [language] * len(texts)), [language] * len(texts))
    assert (found.shape, found.dtype) == ((len(texts),), np.float32)
    assert ((found >= 0) & (found <= 1)).all()


def test_quality_falls_as_a_text_comes_near_a_limit() -> None:
    plain = GOOD.replace(".", "").replace(",", "") * 2
    texts = [plain, plain + " #" * 12, plain + " # …" * 12, plain + " 42" * 40]
    found = quality(signals.measure(Tokens.of(texts), ["en"] * 4), ["en"] * 4)
    np.testing.assert_allclose(found, [0.9, 0.8, 0.6, 0.8], rtol=1e-6)  # its words are short for twice the limit


@compiled
@given(st.text(), st.floats(1, 10))
def test_a_margin_only_makes_limits_stricter(text: str, margin: float) -> None:
    columns = signals.measure(Tokens.of([text]), ["en"])

    def hit(limits: Gopher) -> set[str]:
        return {rule.reason for rule in rules(Thresholds(limits)) if broken(columns[rule.column], rule)[0]}

    loose = Gopher(min_words=5, max_words=1000)
    assert hit(loose) <= hit(stricter(loose, margin))

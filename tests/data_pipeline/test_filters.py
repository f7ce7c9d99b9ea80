"""Each Gopher rule judges by its own limit, and rules that make no sense for a script do not apply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.filters import gopher

GOOD = "The old mill stands by the river, and people of the village come to have their grain ground. " * 5


def broken(text: str, language: str = "en") -> list[str]:
    return gopher.broken_rules(gopher.measure(text, language), 50, 100_000)


def test_prose_breaks_no_rule() -> None:
    assert broken(GOOD) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The mill stands by the river and that is all.", "gopher_too_few_words"),
        (GOOD * 1200, "gopher_too_many_words"),
        ("a b of to c d " * 20, "gopher_mean_word_length"),
        (
            "the internationalisation of counterrevolutionaries and electroencephalography " * 20,
            "gopher_mean_word_length",
        ),
        (GOOD + "# " * 12, "gopher_hashes"),
        (GOOD.replace(" the ", " the... "), "gopher_ellipses"),
        ("- The mill stands by the river and has a wheel.\n" * 12, "gopher_bullet_lines"),
        (("The mill stands by the river and has a wheel…\n" + GOOD[:93] + "\n") * 6, "gopher_ellipsis_lines"),
        (GOOD + "17 + 4 = 21 ; " * 8, "gopher_alphabetic_words"),
        ("Mills grind grain while rivers turn heavy wooden wheels. " * 10, "gopher_stop_words"),
    ],
)
def test_each_rule_is_found(text: str, rule: str) -> None:
    assert rule in broken(text)


def test_limits_are_inclusive() -> None:
    words = "the and " + "mill " * 48
    assert broken(words) == []
    assert broken(words.removesuffix("mill ")) == ["gopher_too_few_words"]


def test_stop_words_are_asked_of_english_only() -> None:
    german = "Die alte Mühle steht am Fluss, und die Leute aus dem Dorf lassen dort ihr Korn mahlen. " * 5
    assert broken(german, "de") == []
    assert "gopher_stop_words" in broken(german, "en")


def test_scripts_without_blanks_are_not_judged_by_words() -> None:
    japanese = "古い水車小屋が川のほとりに立っていて、村の人々は穀物を挽いてもらうためにそこへ来ます。" * 5
    signals = gopher.measure(japanese, "ja")
    assert (signals.mean_word_length, signals.alphabetic_words, signals.stop_words) == (None, None, None)
    assert 70 <= signals.words <= 120
    assert broken(japanese, "ja") == []
    assert broken(japanese[:40], "ja") == ["gopher_too_few_words"]
    assert gopher.rules(signals) == 6


@given(st.text())
def test_quality_lies_between_0_and_1(text: str) -> None:
    assert 0 <= gopher.quality(gopher.measure(text, "en"), 50, 100_000) <= 1


@given(st.text(), st.floats(1, 10))
def test_a_margin_only_makes_limits_stricter(text: str, margin: float) -> None:
    signals = gopher.measure(text, "en")
    loose = gopher.broken_rules(signals, 5, 1000)
    assert set(loose) <= set(gopher.broken_rules(signals, 5, 1000, margin))

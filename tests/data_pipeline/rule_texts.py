"""Invented texts that keep a rule of FineWeb's chain by standing at its limit, and that break it by standing beside.

By the name of the rule as `peers/datatrove.py` has it; of texts that judge more than one rule, the name says which.
"""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """Two texts, and the rule between them."""

    rule: str
    keeps: str
    breaks: str


def prose(count: int) -> list[str]:
    """Different lines of a sentence each, longer than a short line."""
    return [f"The mill of village number {n} stands by the river and has a wheel of oak." for n in range(count)]


def filled(words: list[str], size: int) -> str:
    """The words, then one that makes the text so many characters long."""
    text = " ".join(words) + " "
    return text + "z" * (size - len(text))


def repeated(run: list[str], times: int) -> list[str]:
    """A run of words so many times, each time before a word that is met once."""
    return [word for n in range(times) for word in (*run, f"q{n}")]


lined, paragraphs = "\n".join, "\n\n".join

_RUN_OF = {
    5: "abc def ghi jkl mno",
    6: "abc def gh ij kl mn",
    7: "ab cd ef gh ij kl m",
    8: "ab cd ef gh j k l m",
    9: "ab cd f g h j k l m",
    10: "a b c d f g h j k l",
}

PAIRS = (
    Pair("gopher_too_few_words", "the and" + " mill" * 48, "the and" + " mill" * 47),
    Pair("gopher_too_many_words", "the and" + " the and" * 49_999, "the and" + " the and" * 49_999 + " mill"),
    Pair("gopher_mean_word_length", "the" + " and" * 49, "the" + " and" * 49 + " of"),
    Pair("gopher_mean_word_length", "watermills" + " watermills" * 49, "watermills" * 2 + " watermills" * 49),
    Pair("gopher_symbols", "the and mill " * 30 + "#" * 10, "the and mill " * 30 + "#" * 11),
    Pair("gopher_symbols", "the and mill " * 30 + "… " * 9 + "…", "the and mill " * 30 + "... " * 10 + "..."),
    Pair("gopher_bullet_lines", lined([*prose(1), *["• a wheel of oak"] * 9]), lined([*prose(1), *["- oak"] * 10])),
    Pair("gopher_ellipsis_lines", lined([*prose(7), *["oak..."] * 3]), lined([*prose(7), *["oak … "] * 4, "."])),
    Pair("gopher_alphabetic_words", "the " * 80 + "42 " * 19 + "42", "the " * 80 + "42 " * 20 + "42"),
    Pair("gopher_stop_words", "the mill and" + " mill" * 50, "the mill The" + " mill" * 50),
    Pair(
        "repetition_duplicate_paragraphs",
        paragraphs([*prose(6), *["oak"] * 4]), paragraphs([*prose(6), *["oak"] * 5]),
    ),
    Pair(
        "repetition_duplicate_paragraph_characters",
        paragraphs(["a" * 56, "b" * 20, "b" * 20]), "\n\n\n".join(["a" * 52, "b" * 21, "b" * 21]),
    ),
    Pair("repetition_duplicate_lines", lined([*prose(6), *["oak"] * 4]), paragraphs([*prose(6), *["oak"] * 5])),
    Pair(
        "repetition_duplicate_line_characters",
        lined(["a" * 58, "b" * 20, "b" * 20]), lined(["a" * 56, "b" * 21, "b" * 21]),
    ),
    Pair("repetition_top_2_gram", filled(repeated(["ab", "cd"], 4), 100), filled(repeated(["ab", "cd"], 4), 99)),
    Pair(
        "repetition_top_3_gram",
        filled(repeated(["abc", "de", "fg"], 2), 100), filled(repeated(["abc", "de", "fg"], 2), 99),
    ),
    Pair(
        "repetition_top_4_gram",
        filled(repeated(["ab", "c", "d", "f"], 2), 100), filled(repeated(["ab", "c", "d", "f"], 2), 99),
    ),
    *(
        Pair(f"repetition_duplicate_{n}_grams", *(filled(repeated(run.split(), 2), size) for size in (100, 99)))
        for n, run in _RUN_OF.items()
    ),
    Pair("c4_lorem_ipsum", lined(prose(6)), lined([*prose(5), "Lorem ipsum dolor sit amet."])),
    Pair("c4_curly_brackets", lined([*prose(5), "oak {"]), lined([*prose(5), "a wheel {of} oak"])),
    Pair("c4_curly_brackets", lined([*prose(5), "in JavaScript, {of} oak"]), "{ a wheel\n" + lined(prose(5))),
    Pair("c4_sentences", lined(prose(5)), lined([*prose(4), "oak wheel."])),
    Pair("c4_sentences", " ".join(prose(5)), " ".join(prose(4))),
    Pair("c4_sentences", lined([*prose(5), "Ask for javascript."]), lined([*prose(4), "Ask for JavaScript."])),
    Pair("c4_sentences", lined(prose(5)), lined([*prose(4), "Read our Privacy Policy here."])),
    Pair("c4_sentences", lined([*prose(4), "x y " + "o" * 1000]), lined([*prose(4), "x y " + "o" * 1001])),
    Pair("c4_ended_sentences", lined(line + "[1]" for line in prose(5)), lined([*prose(4), "a wheel of oak"])),
    Pair("c4_ended_sentences", lined([*prose(4), 'He said "oak."']), lined([*prose(4), "He said oak..."])),
    Pair("c4_ended_curly_brackets", lined([*prose(5), "a {wheel of} oak"]), lined([*prose(5), "a {wheel} of oak."])),
    Pair("c4_paragraphs", lined(["oaks " * 39 + "woods"] * 3), lined(["oaks " * 39 + "woods"] * 2 + ["oaks " * 39])),
    Pair("fineweb_line_punctuation", lined([*prose(3), *["oak"] * 22]), lined([*prose(2), *["oak "] * 22, "oak"])),
    Pair("fineweb_short_lines", lined([*prose(33), *["o" * 30] * 67]), lined([*prose(32), *["o" * 30] * 68])),
    Pair(
        "fineweb_repeated_line_characters",
        lined(["a" * 980, "b" * 10, "b" * 10]), lined(["a" * 979, "b" * 10, "b" * 11, "b" * 11]),
    ),
    Pair("fineweb_line_feeds", "a b c\nd f g\nh\nj k l", "a b c\nd f g\n\nh\nj k l"),
)  # fmt: skip

# Where the definitions differ: the rule, why, the text, and whether datatrove drops it. We do the opposite.
DIFFERENCES = (
    (
        "gopher_too_few_words",
        "a symbol that datatrove does not list among punctuation is a word to it",
        "the and" + " mill" * 47 + " →",
        False,
    ),
    (
        "gopher_mean_word_length",
        "the same: a line drawn in a table is a word of many letters",
        "the and" + " mill" * 48 + " " + "─ " * 50 + "─",
        True,
    ),
    (
        "gopher_alphabetic_words",
        "spaCy lists abbreviations, whose full stop is no word of its own",
        "the Inc. " * 40 + "42 " * 19 + "42",
        False,
    ),
    (
        "gopher_too_few_words",
        "spaCy lists words that it takes apart",
        "the and" + " mill" * 46 + " cannot",
        False,
    ),
    (
        "gopher_too_few_words",
        "spaCy lists short forms that it keeps whole",
        "the and" + " mill" * 46 + " and/or",
        True,
    ),
    (
        "gopher_too_few_words",
        "spaCy knows apostrophes of English only",
        "the and" + " mill" * 46 + " d'une",
        True,
    ),
    (
        "gopher_too_few_words",
        "spaCy takes units from numbers",
        "the and" + " mill" * 46 + " 5km",
        False,
    ),
    (
        "gopher_bullet_lines",
        "separators of Unicode end lines for datatrove",
        "a wheel\u2028of oak" + "\n- oak" * 18,
        False,
    ),
)  # fmt: skip

"""Which rule drops a document: the limits of each language, applied to columns that were counted before.

Rules are asked in one order: Gopher's quality, Gopher's repetition, C4's, FineWeb's, RefinedWeb's, and within each as
they stand here; the first that a document breaks is its reason. A limit is kept by the document that meets it exactly.
A rule does not apply where its limit is None, or where its column says that it was not counted (NaN, -1).

English has FineWeb's limits: C4 without terminal punctuation, and none of RefinedWeb's. Other languages have
FineWeb2's: without C4, short lines and paragraphs, and with a looser one on repeated lines; its limits that differ by
language come from a reference set (`calibrate.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Columns: TypeAlias = Mapping[str, npt.NDArray[Any]]
Limit: TypeAlias = float | None

OTHERS = "*"  # every language that is not named


@dataclass(frozen=True)
class Gopher:
    """Rae et al. 2021 (arXiv:2112.11446), appendix A.1.1."""

    min_words: Limit = 50
    max_words: Limit = 100_000
    min_mean_word_length: Limit = 3.0
    max_mean_word_length: Limit = 10.0
    max_hashes: Limit = 0.1
    max_ellipses: Limit = 0.1
    max_bullet_lines: Limit = 0.9
    max_ellipsis_lines: Limit = 0.3
    min_alphabetic_words: Limit = 0.8
    min_stop_words: Limit = 2


@dataclass(frozen=True)
class Repetition:
    """The same paper, table A1."""

    max_duplicate_paragraphs: Limit = 0.30
    max_duplicate_paragraph_characters: Limit = 0.20
    max_duplicate_lines: Limit = 0.30
    max_duplicate_line_characters: Limit = 0.20
    max_top_2_gram: Limit = 0.20
    max_top_3_gram: Limit = 0.18
    max_top_4_gram: Limit = 0.16
    max_duplicate_5_grams: Limit = 0.15
    max_duplicate_6_grams: Limit = 0.14
    max_duplicate_7_grams: Limit = 0.13
    max_duplicate_8_grams: Limit = 0.12
    max_duplicate_9_grams: Limit = 0.11
    max_duplicate_10_grams: Limit = 0.10


@dataclass(frozen=True)
class C4:
    """Raffel et al. 2020 (arXiv:1910.10683), section 2.2; paragraphs from mC4 (Xue et al. 2021, arXiv:2010.11934),
    which asks for three.

    `terminal_punctuation` judges the lines that end in punctuation only, as C4 does and FineWeb does not.
    """

    terminal_punctuation: bool = False
    max_lorem_ipsum: Limit = 0
    max_curly_brackets: Limit = 0
    min_sentences: Limit = 5
    min_paragraphs: Limit = None


@dataclass(frozen=True)
class FineWeb:
    """Penedo et al. 2024 (arXiv:2406.17557), section 3.6, with the values of its published pipeline."""

    min_line_punctuation: Limit = 0.12
    max_short_lines: Limit = 0.67
    max_repeated_line_characters: Limit = 0.01
    max_line_feeds: Limit = 0.3


@dataclass(frozen=True)
class RefinedWeb:
    """Penedo et al. 2023 (arXiv:2306.01116), appendix G, with the values of DCLM's `dclm_baseline_refinedweb.yaml`
    (Li et al. 2024, arXiv:2406.11794)."""

    min_words: Limit = 50
    max_words: Limit = 100_000
    min_mean_word_length: Limit = 3.0
    max_mean_word_length: Limit = 10.0
    max_symbols: Limit = 0.1
    max_bullet_lines: Limit = 0.9
    max_ellipsis_lines: Limit = 0.3
    max_other_words: Limit = 0.2
    min_stop_words: Limit = 2
    max_removed_words: Limit = 0.05


@dataclass(frozen=True)
class Thresholds:
    """The rule sets of a language; None where a set is off."""

    gopher: Gopher | None = Gopher()
    repetition: Repetition | None = Repetition()
    c4: C4 | None = C4()
    fineweb: FineWeb | None = FineWeb()
    refinedweb: RefinedWeb | None = None


SETS: Mapping[str, type[Any]] = {  # by the names of the fields above, in their order
    "gopher": Gopher,
    "repetition": Repetition,
    "c4": C4,
    "fineweb": FineWeb,
    "refinedweb": RefinedWeb,
}
# FineWeb2's README and pipeline (Penedo et al. 2025, arXiv:2506.20920).
FINEWEB2 = Thresholds(
    repetition=Repetition(
        max_duplicate_paragraphs=None, max_duplicate_paragraph_characters=None, max_duplicate_line_characters=None
    ),
    c4=None,
    fineweb=FineWeb(max_short_lines=None, max_repeated_line_characters=0.1),
)
DEFAULTS: Mapping[str, Thresholds] = {"en": Thresholds(), OTHERS: FINEWEB2}


class Rule(NamedTuple):
    """A limit and the column that it is held against."""

    reason: str  # what is written of a document that breaks it
    column: str
    limit: float
    least: bool  # whether the limit is the least that a document may have, or the most


def rules(thresholds: Thresholds) -> list[Rule]:
    """The rules that are on, in the order in which they are asked."""
    found = []
    for set_name in SETS:
        limits = getattr(thresholds, set_name)
        if limits is None:
            continue
        ended = isinstance(limits, C4) and limits.terminal_punctuation
        for field in dataclasses.fields(limits):
            limit = getattr(limits, field.name)
            if limit is None or field.name == "terminal_punctuation":
                continue
            bound, name = field.name.split("_", 1)
            reason = name if name != "words" else {"min": "too_few_words", "max": "too_many_words"}[bound]
            found.append(Rule(f"{set_name}_{reason}", _column(set_name, name, ended), float(limit), bound == "min"))
    return found


def _column(set_name: str, name: str, ended: bool) -> str:
    if set_name == "c4" and name != "paragraphs":
        return f"c4_ended_{name}" if ended else f"c4_{name}"
    if set_name == "c4" or (set_name == "refinedweb" and name != "words"):
        return f"{set_name}_{name}"
    return name


def reasons(columns: Columns, languages: Sequence[str], thresholds: Mapping[str, Thresholds] = DEFAULTS) -> list[str]:
    """The first rule that each document breaks, "" where it breaks none.

    `thresholds` are those of a language by its code, and of all that are not named under `OTHERS`. Raises KeyError
    where neither is there.
    """
    first = np.full(len(languages), "", dtype=object)
    for _, chosen, limits in _by_language(languages, thresholds):
        for rule in reversed(rules(limits)):
            first[chosen[broken(columns[rule.column][chosen], rule)]] = rule.reason
    return list(first)


def broken(values: npt.NDArray[Any], rule: Rule) -> npt.NDArray[np.bool_]:
    """Which values break a rule. Values of float32 are held against the limit in float32, so that one that is equal to
    the limit in decimals keeps it."""
    limit = np.asarray(rule.limit, values.dtype if values.dtype == np.float32 else np.float64)
    if rule.least:
        return np.asarray((values < limit) & (values >= 0))
    return np.asarray(values > limit)


def quality(
    columns: Columns, languages: Sequence[str], thresholds: Mapping[str, Thresholds] = DEFAULTS
) -> npt.NDArray[np.float32]:
    """Share of Gopher's quality rules that hold even with limits twice as strict (0 to 1); NaN where none applies.

    A coarse order among documents that passed: how far a text is from the limits, not how good it is to read. No model
    is behind it.
    """
    shares = np.full(len(languages), np.nan, np.float32)
    for _, chosen, limits in _by_language(languages, thresholds):
        strict = rules(Thresholds(stricter(limits.gopher or Gopher()), None, None, None))
        values = [columns[rule.column][chosen] for rule in strict]
        applied = sum((of_rule >= 0).astype(np.float32) for of_rule in values)
        hit = sum(broken(of_rule, rule).astype(np.float32) for of_rule, rule in zip(values, strict, strict=True))
        with np.errstate(invalid="ignore"):
            shares[chosen] = 1 - hit / applied
    return shares


def stricter(limits: Gopher, margin: float = 2.0) -> Gopher:
    """Limits by a factor above 1 nearer to what they allow most: the most is divided by it, the least multiplied; what
    may miss 1 may miss it by so much less; the range of word lengths narrows around its middle."""

    def scaled(limit: Limit, by: float) -> Limit:
        return None if limit is None else limit * by

    low, high = limits.min_mean_word_length, limits.max_mean_word_length
    if low is not None and high is not None:
        middle, reach = (low + high) / 2, (high - low) / 2
        low, high = middle - reach / margin, middle + reach / margin
    alphabetic = limits.min_alphabetic_words
    return Gopher(
        min_words=scaled(limits.min_words, margin),
        max_words=scaled(limits.max_words, 1 / margin),
        min_mean_word_length=low,
        max_mean_word_length=high,
        max_hashes=scaled(limits.max_hashes, 1 / margin),
        max_ellipses=scaled(limits.max_ellipses, 1 / margin),
        max_bullet_lines=scaled(limits.max_bullet_lines, 1 / margin),
        max_ellipsis_lines=scaled(limits.max_ellipsis_lines, 1 / margin),
        min_alphabetic_words=None if alphabetic is None else 1 - (1 - alphabetic) / margin,
        min_stop_words=scaled(limits.min_stop_words, margin),
    )


def _by_language(
    languages: Sequence[str], thresholds: Mapping[str, Thresholds]
) -> list[tuple[str, npt.NDArray[np.intp], Thresholds]]:
    of_document = np.array(languages, dtype=object)
    return [
        (language, np.flatnonzero(of_document == language), thresholds.get(language) or thresholds[OTHERS])
        for language in sorted(set(languages))
    ]

"""Every decision that drops a document, in the order in which they are made, with what it says in plain words.

A document is dropped by the first decision that is against it, so the order is that of the funnel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data_pipeline.signals.thresholds import SETS, Rule, Thresholds, rules

KEPT = "kept"  # stands where a reason would, of documents that none drops


class Decision(NamedTuple):
    """Why documents go.

    stage   of curation, by which decisions are put together
    says    what is wrong with such a document
    key     of `curate` that holds its limit; "" where it has none there
    allows  how that limit is said
    harm    whether what it drops is too bad to show a piece of
    """

    stage: str
    says: str
    key: str = ""
    allows: str = ""
    harm: bool = False


class Limit(NamedTuple):
    """What a decision allows, with a place for the value: the same in every language, or from `low` to `high`."""

    allows: str
    low: float
    high: float


_READING, _LISTS, _LANGUAGE, _MODELS = "Reading", "Block lists", "Language", "Classifiers and word lists"
_PRIVATE, _BENCHMARKS, _DUPLICATES = "Personal data", "Benchmarks", "Duplicates"
_LEAST, _MOST = "at least {}", "at most {}"

_BEFORE_RULES = {
    "unreadable": Decision(_READING, "not text, or not the format that its name says"),
    "broken_record": Decision(_READING, "a broken line or row in a good file"),
    "too_large": Decision(
        _READING, "larger than a document may be; it was not read", "extract.largest_bytes", "at most {} bytes"
    ),
    "damaged": Decision(_READING, "a stretch of a file that cannot be read, or is missing at its end"),
    "http_status": Decision(_READING, "the server answered with something else than 200"),
    "content_type": Decision(_READING, "neither HTML nor plain text"),
    "extract_timeout": Decision(_READING, "a page that took too long to read", "extract.seconds", "at most {} s"),
    "extract_memory": Decision(
        _READING, "a page that took too much memory to read", "extract.memory_bytes", "at most {} bytes"
    ),
    "extract_crash": Decision(_READING, "a page that made the process end that read it"),
    "empty": Decision(_READING, "no text in it"),
    "blocked_url": Decision(_LISTS, "a page on a block list", harm=True),
    "blocked_domain": Decision(_LISTS, "a domain on a block list", harm=True),
    "blocked_text": Decision(_LISTS, "a text on a block list", harm=True),
    "prohibited": Decision(_LISTS, "what must not be stored: counted, and kept nowhere", harm=True),
    "language_uncertain": Decision(_LANGUAGE, "no language is certain enough", "language_confidence", _LEAST),
    "language_unwanted": Decision(_LANGUAGE, "a language that was not asked for"),
}
_AFTER_RULES = {
    "low_quality": Decision(_MODELS, "too unlike the good documents that were named", "quality.least", _LEAST),
    "toxic": Decision(_MODELS, "too much of it offends", "toxicity.most", _MOST, harm=True),
    "bad_words": Decision(
        _MODELS, "too many words of its language's list of bad words", "harm.most_words", _MOST, True
    ),
    "private_items": Decision(
        _PRIVATE, "more personal data and secrets than a document may hold", "private.most_items", _MOST
    ),
    "contaminated": Decision(_BENCHMARKS, "it holds an item of a benchmark"),
    "exact_duplicate": Decision(_DUPLICATES, "the same text as another document that stays"),
    "near_duplicate": Decision(
        _DUPLICATES,
        "nearly the same text as another document that stays",
        "duplicates.similarity",
        "less than {} of its runs of words shared",
    ),
    "repeated_lines": Decision(_DUPLICATES, "most of it is lines and paragraphs that many documents hold"),
}

_SETS = {
    "gopher": "Gopher",
    "repetition": "Gopher, repetition",
    "c4": "C4",
    "fineweb": "FineWeb",
    "refinedweb": "RefinedWeb",
}
# By what follows the name of the set in a reason: what sets have in common they call the same.
_RULES = {
    "too_few_words": "too few words",
    "too_many_words": "too many words",
    "mean_word_length": "words too short or too long on average, in characters",
    "hashes": "too many # signs, for each word",
    "ellipses": "too many ellipses, for each word",
    "symbols": "too many # signs and ellipses, for each word",
    "bullet_lines": "too many of its lines are bullet points",
    "ellipsis_lines": "too many of its lines end in an ellipsis",
    "alphabetic_words": "too few of its words hold a letter",
    "other_words": "too many of its words hold no letter",
    "stop_words": "too few of the most common words of its language",
    "removed_words": "too many of its words stand in counters, menus and other lines of no text",
    "duplicate_paragraphs": "too many of its paragraphs came before in it",
    "duplicate_paragraph_characters": "too much of it stands in paragraphs that came before in it",
    "duplicate_lines": "too many of its lines came before in it",
    "duplicate_line_characters": "too much of it stands in lines that came before in it",
    "repeated_line_characters": "too much of it stands in lines that came before in it",
    **{f"top_{n}_gram": f"too much of it is one phrase of {n} words" for n in (2, 3, 4)},
    **{
        f"duplicate_{n}_grams": f"too much of it stands in phrases of {n} words that came before in it"
        for n in range(5, 11)
    },
    "lorem_ipsum": "lines that say lorem ipsum",
    "curly_brackets": "lines with a {, as code has them",
    "sentences": "too few sentences",
    "paragraphs": "too few long lines, of 200 characters and more",
    "line_punctuation": "too few of its lines end in punctuation",
    "short_lines": "too many of its lines are short, of at most 30 characters",
    "line_feeds": "too many line breaks, for each word",
}


def _of_rules() -> dict[str, Decision]:
    """Decisions by the limits of `signals.thresholds`, in its order."""
    every = Thresholds(
        **{name: kind(**{field.name: 0.0 for field in dataclasses.fields(kind)}) for name, kind in SETS.items()}
    )
    found = {}
    for rule in rules(every):
        set_name, name = rule.reason.split("_", 1)
        found[rule.reason] = Decision(_SETS[set_name], _RULES[name])
    return found


REASONS: Mapping[str, Decision] = {**_BEFORE_RULES, **_of_rules(), **_AFTER_RULES}
STAGES: Sequence[str] = tuple(dict.fromkeys(decision.stage for decision in REASONS.values()))


def ordered(counts: Mapping[str, Any]) -> list[str]:
    """The reasons that are counted, in the order of the decisions."""
    return [reason for reason in REASONS if reason in counts]


def limits(thresholds: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, list[Limit]]:
    """What held for each reason, from `thresholds` (language -> rule set -> limit -> value) and `config` of a card.

    A reason that had no limit, or whose limit the card does not tell, is missing.
    """
    values: dict[tuple[str, bool], list[float]] = {}
    for sets in thresholds.values():
        for rule in rules_of(sets):
            values.setdefault((rule.reason, rule.least), []).append(rule.limit)
    held: dict[str, list[Limit]] = {}
    for (reason, least), of_languages in values.items():
        limit = Limit(_LEAST if least else _MOST, min(of_languages), max(of_languages))
        held.setdefault(reason, []).append(limit)
    for reason, decision in REASONS.items():
        value = _at(config, decision.key) if decision.key else None
        if isinstance(value, int | float):
            held[reason] = [Limit(decision.allows, value, value)]
    return held


def rules_of(sets: Mapping[str, Any]) -> list[Rule]:
    """The rules of a language, from its entry in a card."""
    return rules(
        Thresholds(**{name: None if sets.get(name) is None else kind(**sets[name]) for name, kind in SETS.items()})
    )


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value

"""Limits and stop words of a language from a reference set: good documents in it, an encyclopaedia for example.

FineWeb2 (Penedo et al. 2025, arXiv:2506.20920) keeps the rules of FineWeb for each language and moves those limits that
differ between languages (`CALIBRATED`; the configurations that it published name the same). Ways to move one:

    tail        what lies beyond the limit is a fixed share of the reference set
    quantile    it is the share that lies beyond English's limit in an English reference set
    deviation   the limit is as many standard deviations from the mean as English's is in an English reference set

Stop words are the words that make up 0.8 % of the reference set each, or 0.3 % where those are fewer than eight, as in
the pipeline for a hundred languages that datatrove's filters for other languages come from; that took limits from means
and standard deviations, too.

The same documents give the same result in any order, to the last digit of what is written: limits are rounded to three
decimals, to the side that keeps more.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from data_pipeline.batched import batched
from data_pipeline.signals.gopher import MOST_STOP_WORDS
from data_pipeline.signals.thresholds import DEFAULTS, OTHERS, SETS, Columns, Rule, Thresholds, rules
from data_pipeline.signals.tokens import ALPHABETIC, Tokens

Way: TypeAlias = Literal["tail", "quantile", "deviation"]

CALIBRATED = frozenset(
    (
        "mean_word_length", "alphabetic_words", "duplicate_lines", "line_punctuation", "line_feeds",
        *(f"top_{n}_gram" for n in (2, 3, 4)), *(f"duplicate_{n}_grams" for n in range(5, 11)),
    )
)  # fmt: skip
FEWEST_DOCUMENTS = 100
TAIL = 0.01  # what each rule may cost of documents that are good
STOP_WORD_SHARES, FEWEST_STOP_WORDS = (0.008, 0.003), 8
DECIMALS = 3
_BATCH_CHARACTERS = 1 << 20
FORMAT = 1


@dataclass(frozen=True)
class Calibrated:
    """What a reference set said of its language."""

    thresholds: Thresholds
    stop_words: tuple[str, ...]
    documents: int


def calibrate(
    columns: Columns,
    language: str,
    stop_words: tuple[str, ...],
    *,
    way: Way = "tail",
    tail: float = TAIL,
    english: Columns | None = None,
) -> Calibrated:
    """Limits from the columns of the reference set; those of an English one are needed for all ways but `tail`.

    Rules that do not differ by language, or are off for it, stay as in `thresholds.DEFAULTS`. Raises ValueError where a
    reference set has too few documents, or where the English one is missing.
    """
    documents = _documents(columns, language)
    if way != "tail":
        if english is None:
            raise ValueError(f"way={way!r} moves English's limits: it needs the columns of an English reference set")
        _documents(english, "en")
    limits_of_english = {(rule.column, rule.least): rule.limit for rule in rules(DEFAULTS["en"])}
    moved: dict[tuple[str, bool], float] = {}
    base = DEFAULTS.get(language, DEFAULTS[OTHERS])
    for rule in rules(base):
        values = _counted(columns, rule)
        if rule.column not in CALIBRATED or not values.size:
            continue
        if way == "tail":
            limit = beyond(values, tail, rule.least)
        else:
            assert english is not None
            of_english = _counted(english, rule)
            limit = _moved(values, of_english, limits_of_english[rule.column, rule.least], rule, way)
        moved[rule.column, rule.least] = _rounded(max(0.0, limit), rule.least)
    return Calibrated(_with_limits(base, moved), stop_words, documents)


def beyond(values: npt.NDArray[Any], share: float, least: bool) -> float:
    """The limit that a share of the values breaks; no more of them where values repeat."""
    ordered = np.sort(values.astype(np.float64))
    place = math.floor(share * (len(ordered) - 1))
    return float(ordered[place] if least else ordered[len(ordered) - 1 - place])


def _moved(values: npt.NDArray[Any], english: npt.NDArray[Any], limit: float, rule: Rule, way: Way) -> float:
    """The limit that stands in a language where another stands in English."""
    if way == "quantile":
        breaks = english < limit if rule.least else english > limit
        return beyond(values, float(breaks.mean()), rule.least)
    spread = float(english.std(dtype=np.float64))
    if spread == 0:
        return limit
    distance = (limit - float(english.mean(dtype=np.float64))) / spread
    return float(values.mean(dtype=np.float64)) + distance * float(values.std(dtype=np.float64))


def find_stop_words(texts: Iterable[str]) -> tuple[str, ...]:
    """The words that make up most of the reference set, the most frequent first; those in lower case only, as they are
    met only so. Memory grows with the number of different words."""
    counts: dict[int, int] = {}
    words: dict[int, str] = {}
    total = 0
    for batch in batched(texts, len, _BATCH_CHARACTERS):
        tokens = Tokens.of(batch)
        spoken = np.flatnonzero(tokens.kinds_W & ALPHABETIC)
        total += int(spoken.size)
        hashes, places, times = np.unique(tokens.hashes_W[spoken], return_index=True, return_counts=True)
        for hash_, place, count in zip(hashes.tolist(), spoken[places].tolist(), times.tolist(), strict=True):
            counts[hash_] = counts.get(hash_, 0) + count
            if hash_ not in words:
                of_word = tokens.text_C[tokens.starts_W[place] : tokens.ends_W[place]]
                words[hash_] = of_word.tobytes().decode("utf-32-le")
    ordered = sorted((-count, words[hash_]) for hash_, count in counts.items() if words[hash_] == words[hash_].lower())
    found: list[str] = []
    for share in STOP_WORD_SHARES:
        found = [word for count, word in ordered if -count >= share * total]
        if len(found) >= FEWEST_STOP_WORDS:
            break
    return tuple(found[:MOST_STOP_WORDS])


def _documents(columns: Columns, language: str) -> int:
    documents = len(columns["words"])
    if documents < FEWEST_DOCUMENTS:
        raise ValueError(
            f"the reference set of {language} holds {documents} documents: limits need at least {FEWEST_DOCUMENTS}"
        )
    return documents


def _counted(columns: Columns, rule: Rule) -> npt.NDArray[Any]:
    """The values of a column without NaN. Sorted, as sums of floats depend on their order."""
    values = np.sort(columns[rule.column])
    return np.asarray(values[values >= 0])


def _rounded(limit: float, least: bool) -> float:
    scaled = limit * 10**DECIMALS
    return (math.floor(scaled) if least else math.ceil(scaled)) / 10**DECIMALS


def _with_limits(base: Thresholds, moved: Mapping[tuple[str, bool], float]) -> Thresholds:
    sets = {}
    for set_field in dataclasses.fields(base):
        limits = getattr(base, set_field.name)
        if limits is not None:
            names = {field.name for field in dataclasses.fields(limits)}
            changes = {f"{'min' if least else 'max'}_{column}": limit for (column, least), limit in moved.items()}
            sets[set_field.name] = dataclasses.replace(
                limits, **{name: limit for name, limit in changes.items() if name in names}
            )
    return dataclasses.replace(base, **sets)


# ---- JSON ------------------------------------------------------------------------------------------------------------


def dump(found: Mapping[str, Calibrated]) -> str:
    """JSON of languages by code, equal for equal content."""
    languages = {
        language: {
            "documents": calibrated.documents,
            "stop_words": list(calibrated.stop_words),
            "thresholds": dataclasses.asdict(calibrated.thresholds),
        }
        for language, calibrated in sorted(found.items())
    }
    return json.dumps({"format": FORMAT, "languages": languages}, ensure_ascii=False, indent=1) + "\n"


def load(text: str) -> dict[str, Calibrated]:
    """What `dump` wrote. Raises ValueError that says which key of which language is wrong."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("languages"), dict):
        raise ValueError("no calibrated limits: the key languages is missing")
    if not _is_count(content.get("format", 0)) or content.get("format", 0) > FORMAT:
        raise ValueError(f"format {content['format']!r} of calibrated limits, this version reads up to {FORMAT}")
    return {language: _loaded(language, entry) for language, entry in content["languages"].items()}


def _loaded(language: str, entry: Any) -> Calibrated:
    if not isinstance(entry, dict) or set(entry) != {"documents", "stop_words", "thresholds"}:
        raise ValueError(f"{language}: needs the keys documents, stop_words and thresholds, and no others")
    words = entry["stop_words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{language}: stop_words is no list of words")
    if not _is_count(entry["documents"]):
        raise ValueError(f"{language}: documents is no count")
    return Calibrated(_thresholds(language, entry["thresholds"]), tuple(words), entry["documents"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _thresholds(language: str, entry: Any) -> Thresholds:
    if not isinstance(entry, dict) or not set(entry) <= set(SETS):
        raise ValueError(f"{language}: thresholds names other rule sets than {', '.join(SETS)}")
    sets: dict[str, Any] = {}
    for name, limits in entry.items():
        kind = SETS[name]
        known = {field.name for field in dataclasses.fields(kind)}
        if limits is not None and (not isinstance(limits, dict) or not set(limits) <= known):
            raise ValueError(f"{language}: thresholds.{name} holds other limits than {', '.join(sorted(known))}")
        for key, limit in (limits or {}).items():
            if key == "terminal_punctuation" and not isinstance(limit, bool):
                raise ValueError(f"{language}: thresholds.{name}.{key} is neither true nor false")
            if key != "terminal_punctuation" and not _is_limit(limit):
                raise ValueError(f"{language}: thresholds.{name}.{key} is no number")
        sets[name] = None if limits is None else kind(**limits)
    return Thresholds(**sets)


def _is_limit(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))

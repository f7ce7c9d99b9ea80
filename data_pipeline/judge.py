"""The verdict on one record: extract, scrub, identify the language, measure, decide. Pure; runs in worker processes.

Knows nothing of other documents: duplicates are found where all verdicts come together (`curate.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from data_pipeline.classify.language import identify
from data_pipeline.dedup import fingerprint
from data_pipeline.document import Record, Verdict
from data_pipeline.extract import UnreadableError, decode, extract, repair
from data_pipeline.filters import gopher
from data_pipeline.private.found import KINDS
from data_pipeline.private.scrub import scrub


@dataclass(frozen=True)
class Rules:
    """The thresholds of `conf.schema.Curate` that a verdict depends on."""

    languages: tuple[str, ...]
    language_confidence: float
    min_words: int
    max_words: int


def judge(record: Record, rules: Rules) -> Verdict | None:
    """The verdict on a record; None where it holds no document at all. No text leaves here with keys in it."""
    try:
        text = extract(record) if not record.reason else _rejected_text(record)
    except UnreadableError:
        return Verdict(_stated(record), "", "unreadable")
    if text is None:
        return None
    size = len(text.encode())
    scrubbed = scrub(text)
    text = scrubbed.text
    stated = _stated(record)
    if record.reason or not text:
        return Verdict(stated, text, record.reason or "empty", size)

    language, confidence = identify(text)
    counted = gopher.measure(text, language)
    broken = gopher.broken_rules(counted, rules.min_words, rules.max_words)
    if confidence < rules.language_confidence:
        reason = "language_uncertain"
    elif rules.languages and language not in rules.languages:
        reason = "language_unwanted"
    else:
        reason = broken[0] if broken else ""
    return Verdict(
        record=stated,
        text=text,
        reason=reason,
        extracted_bytes=size,
        language=language,
        quality=gopher.quality(counted, rules.min_words, rules.max_words),
        signals={
            "language_confidence": confidence,
            **dataclasses.asdict(counted),
            **{f"scrubbed_{kind}": scrubbed.counts.get(kind, 0) for kind in KINDS},
        },
        fingerprint=b"" if reason else fingerprint(text),
    )


def judge_all(records: Iterable[Record], rules: Rules) -> list[Verdict]:
    """Verdicts in the order of the records, without those that hold no document."""
    return [verdict for record in records if (verdict := judge(record, rules)) is not None]


def _rejected_text(record: Record) -> str:
    """What can be shown of a record that its source rejected."""
    if isinstance(record.content, str):
        return repair(record.content)
    try:
        return repair(decode(record.content))
    except UnreadableError:
        return ""


def _stated(record: Record) -> Record:
    """The record without its content and without personal data or secrets in what it states about itself.

    Where its id held any it has none, and its locator is then what names it: its url, or where that held any its place.
    """
    url = _scrubbed(record.url)
    return replace(
        record,
        content="",
        locator=url if url and url == record.url else record.locator,
        id=record.id if _scrubbed(record.id) == record.id else "",  # placeholders are all alike
        url=url,
        source=_scrubbed_again(record.source),
        language=_scrubbed_again(record.language),
        license=_scrubbed_again(record.license),
    )


def _scrubbed(stated: str) -> str:
    return scrub(stated).text if stated else ""


_scrubbed_again = lru_cache(_scrubbed)  # for what many records state alike

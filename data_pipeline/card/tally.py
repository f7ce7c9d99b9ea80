"""Counts over documents: what came in, what was kept, and why the rest was not.

A task counts its own documents. Tallies add up, whatever their order, to the same values in the same order: counts are
sums, and samples are the documents of the smallest hashes.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipeline.card.reasons import KEPT, REASONS, ordered
from data_pipeline.private.found import KINDS

SAMPLES = 5  # documents that are shown of each decision
EXCERPT = 200  # characters of their text
UNKNOWN = "und"  # the language of what was dropped before it was asked for
NOT_STATED = "not stated"


class Sample(NamedTuple):
    """A document that is shown; they are ordered by the SHA-256 of their ids."""

    digest: bytes
    id: str
    excerpt: str

    @classmethod
    def of(cls, id_: str, excerpt: str) -> Sample:
        """The sample of a document."""
        return cls(hashlib.sha256(id_.encode()).digest(), id_, excerpt)


class Tally:
    """What was counted of some documents. Bytes are UTF-8 of text: in before scrubbing, kept as it is published.

    Histograms are by powers of two: 1024 counts 1,024 to 2,047; 0 is for texts without anything in them.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()  # by what is counted, and of what
        self._samples: dict[str, list[Sample]] = {}

    def add(self, row: Mapping[str, Any], reason: str, extracted_bytes: int, label: str) -> None:
        """Count a document of the source of this label; `reason` is "" where it is kept.

        row   its columns: id, text, language, license, quality (None where it has none), `scrubbed_<kind>` of each
              kind of `KINDS`; of a kept one also exact_copies and near_copies (equal and similar documents that it
              stands for, itself among them: 1 where there are no others) and cut_characters (of lines that were cut)

        Raises ValueError for a reason that nobody explains.
        """
        if reason and reason not in REASONS:
            raise ValueError(f"the reason {reason!r} is not explained: add it to data_pipeline/card/reasons.py")
        outcome, language = reason or KEPT, row["language"] or UNKNOWN
        self._counts["documents", label, outcome] += 1
        self._counts["bytes_in", label, outcome] += extracted_bytes
        self._counts["languages_in", language] += 1
        self._counts["lengths_in", _power(extracted_bytes)] += 1
        hidden = bool(reason) and REASONS[reason].harm
        excerpt = "" if hidden else " ".join(row["text"][:EXCERPT].split())
        self._show(outcome, Sample.of(row["id"], excerpt))
        if not reason:
            self._keep(row, language, label)

    def prohibited(self, label: str, documents: int) -> None:
        """Count documents that must not be stored: nothing else is known of them."""
        self._counts["documents", label, "prohibited"] += documents

    def _keep(self, row: Mapping[str, Any], language: str, label: str) -> None:
        size, license_ = len(row["text"].encode()), row["license"] or NOT_STATED
        self._counts["bytes_kept", label] += size
        self._counts["languages_kept", language] += 1
        self._counts["languages_bytes", language] += size
        self._counts["licenses", license_] += 1
        self._counts["licenses_bytes", license_] += size
        self._counts["lengths_kept", _power(size)] += 1
        if row["quality"] is not None and not math.isnan(row["quality"]):
            self._counts["quality", f"{row['quality']:.1f}"] += 1
        # What was equal to one of the similar documents was removed for that, and is not among these.
        if (stands_for := row["exact_copies"] + row["near_copies"] - 1) > 1:
            self._counts["clusters", _power(stands_for)] += 1
        if row["cut_characters"]:
            self._counts["lines", "documents"] += 1
            self._counts["lines", "characters"] += row["cut_characters"]
        for kind in KINDS:
            if items := row[f"scrubbed_{kind}"]:
                self._counts["scrubbed", kind] += items
                self._counts["scrubbed_documents", kind] += 1

    def _show(self, outcome: str, sample: Sample) -> None:
        shown = self._samples.setdefault(outcome, [])
        if len(shown) < SAMPLES or sample < shown[-1]:
            bisect.insort(shown, sample)
            del shown[SAMPLES:]

    def merge(self, other: Tally) -> None:
        """Add what was counted of other documents."""
        self._counts.update(other._counts)
        for outcome, shown in other._samples.items():
            for sample in shown:
                self._show(outcome, sample)

    def to_json(self) -> dict[str, Any]:
        """All that was counted, in one order whatever was counted first."""
        return {
            "counts": [[*key, count] for key, count in sorted(self._counts.items())],
            "samples": {
                outcome: [[sample.id, sample.excerpt] for sample in shown]
                for outcome, shown in sorted(self._samples.items())
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """What `to_json` gave."""
        tally = cls()
        tally._counts.update({tuple(key): count for *key, count in content["counts"]})
        tally._samples = {
            outcome: [Sample.of(id_, excerpt) for id_, excerpt in shown]
            for outcome, shown in content["samples"].items()
        }
        return tally

    def card_values(self) -> dict[str, Any]:
        """What `data_card.json` says of the documents. Names are by falling count, or in the order of decisions."""
        of: defaultdict[str, Counter[str]] = defaultdict(Counter)  # whatever the source
        for (name, *what), count in self._counts.items():
            of[name][what[-1]] += count
        dropped = Counter({outcome: count for outcome, count in of["documents"].items() if outcome != KEPT and count})
        return {
            "counts": {
                "documents_in": of["documents"].total(),
                "documents_kept": of["documents"][KEPT],
                "bytes_in": of["bytes_in"].total(),
                "bytes_kept": of["bytes_kept"].total(),
                "dropped": _falling(dropped),
                "scrubbed": {kind: of["scrubbed"][kind] for kind in KINDS},
                "sources": self._sources(),
                "languages": _falling(of["languages_kept"]),
            },
            "funnel": [
                {"reason": reason, "documents": dropped[reason], "bytes": of["bytes_in"][reason]}
                for reason in ordered(dropped)
            ],
            "languages": {
                language: {
                    "documents_in": count,
                    "documents_kept": of["languages_kept"][language],
                    "bytes_kept": of["languages_bytes"][language],
                }
                for language, count in _falling(of["languages_in"]).items()
            },
            "licenses": {
                name: {"documents": count, "bytes": of["licenses_bytes"][name]}
                for name, count in _falling(of["licenses"]).items()
            },
            "lengths": {"in": _by_number(of["lengths_in"]), "kept": _by_number(of["lengths_kept"])},
            "quality": _by_number(of["quality"]),
            "duplicates": {
                "exact": dropped["exact_duplicate"],
                "near": dropped["near_duplicate"],
                "clusters": _by_number(of["clusters"]),
            },
            "lines": {name: of["lines"][name] for name in ("documents", "characters")},
            "scrubbed_documents": {kind: of["scrubbed_documents"][kind] for kind in KINDS},
            "samples": {
                outcome: [{"id": sample.id, "excerpt": sample.excerpt} for sample in self._samples[outcome]]
                for outcome in (KEPT, *REASONS)
                if outcome in self._samples
            },
        }

    def _sources(self) -> dict[str, Any]:
        sources: dict[str, Any] = {}
        for (name, *what), count in sorted(self._counts.items()):
            if name not in ("documents", "bytes_in", "bytes_kept"):
                continue
            counted = sources.setdefault(
                what[0], {"documents_in": 0, "documents_kept": 0, "bytes_in": 0, "bytes_kept": 0, "dropped": {}}
            )
            if name == "documents":
                counted["documents_in"] += count
                if what[1] == KEPT:
                    counted["documents_kept"] = count
                elif count:
                    counted["dropped"][what[1]] = count
            else:
                counted[name] += count
        for counted in sources.values():
            counted["dropped"] = _falling(counted["dropped"])
        return dict(sorted(sources.items(), key=lambda item: (-item[1]["documents_in"], item[0])))


def _power(count: int) -> str:
    """The largest power of two that is in it, by which a histogram counts it."""
    return str(1 << (count.bit_length() - 1)) if count else "0"


def _falling(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _by_number(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: float(item[0])))

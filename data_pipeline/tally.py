"""Counts over a curation: what came in, what was kept and why the rest was not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.private.found import KINDS

SAMPLES = 5  # ids shown per outcome
KEPT = "kept"


@dataclass
class SourceTally:
    """One source. `bytes_in` is UTF-8 text before scrubbing, `bytes_kept` after it."""

    documents_in: int = 0
    documents_kept: int = 0
    bytes_in: int = 0
    bytes_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class Tally:
    """All sources. Histogram keys are powers of two: 1024 counts kept texts of 1,024 to 2,047 UTF-8 bytes."""

    sources: dict[str, SourceTally] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    quality: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    scrubbed: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, row: dict[str, Any], reason: str, extracted_bytes: int) -> None:
        """Count a document; `reason` is "" where it is kept."""
        one = self.sources.setdefault(source, SourceTally())
        one.documents_in += 1
        one.bytes_in += extracted_bytes
        sample = self.samples.setdefault(reason or KEPT, [])
        if len(sample) < SAMPLES:
            sample.append(row["id"])
        if reason:
            one.dropped[reason] += 1
            return
        size = len(row["text"].encode())
        one.documents_kept += 1
        one.bytes_kept += size
        self.languages[row["language"]] += 1
        self.licenses[row["license"] or "not stated"] += 1
        self.lengths[1 << (size.bit_length() - 1)] += 1
        self.quality[f"{row['quality']:.1f}"] += 1
        self.scrubbed.update({kind: row[f"scrubbed_{kind}"] for kind in KINDS})

    def counts(self) -> dict[str, Any]:
        """Plain values for JSON, with sorted keys or by falling count."""
        sources = self.sources.values()
        dropped = sum((one.dropped for one in sources), Counter())
        return {
            "documents_in": sum(one.documents_in for one in sources),
            "documents_kept": sum(one.documents_kept for one in sources),
            "bytes_in": sum(one.bytes_in for one in sources),
            "bytes_kept": sum(one.bytes_kept for one in sources),
            "dropped": _falling(dropped),
            "scrubbed": {kind: self.scrubbed[kind] for kind in KINDS},
            "sources": {
                name: {
                    "documents_in": one.documents_in,
                    "documents_kept": one.documents_kept,
                    "bytes_in": one.bytes_in,
                    "bytes_kept": one.bytes_kept,
                    "dropped": _falling(one.dropped),
                }
                for name, one in self.sources.items()
            },
            "languages": _falling(self.languages),
        }

    def details(self) -> dict[str, Any]:
        """What only the data card shows."""
        return {
            "licenses": _falling(self.licenses),
            "lengths": {str(size): self.lengths[size] for size in sorted(self.lengths)},
            "quality": dict(sorted(self.quality.items())),
            "samples": dict(sorted(self.samples.items())),
        }


def _falling(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))

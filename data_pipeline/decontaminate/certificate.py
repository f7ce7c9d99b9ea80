"""What a data set says about the benchmarks that were kept out of it: which, by which method, and how much was found.

It travels with the data: from curated text to token shards to the checkpoints of a run, where evaluation asks whether a
benchmark is covered. It names files and items by hashes, so it tells long after the files are gone. Who reads one needs
nothing of what finds benchmarks, which is compiled.

    format      1
    action      what was done: drop or cut
    method      of finding (`index.Method`)
    documents   that were looked at
    benchmarks  for each: files (name -> sha256), fields that were read, sha256 of the items, items that were read and
                that were indexed, each once; contaminated documents and items by kind, and as a fraction of the items.
                Of items that ask the same question at most 16 are named where it is found (`match`), and counted here
    sha256      of all this, by which a changed certificate is known
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from conf.exits import DataError

if TYPE_CHECKING:
    from data_pipeline.decontaminate.actions import Action
    from data_pipeline.decontaminate.index import Index
    from data_pipeline.decontaminate.items import Evaluation
    from data_pipeline.decontaminate.match import Spans

FORMAT = 1
Covered = Literal["yes", "other files", "no"]


@dataclass
class Found:
    """Counts of any number of batches: they add up whatever their order.

    documents      that were looked at
    contaminated   benchmark -> documents with a span, by kind
    items          numbers of the items that were found, by kind; answered: those with a right answer near the question
    """

    documents: int = 0
    contaminated: dict[str, dict[str, int]] = field(default_factory=dict)
    items: dict[str, set[int]] = field(default_factory=lambda: {"clusters": set(), "answered": set(), "runs": set()})

    def add(self, index: Index, spans: Spans) -> None:
        """Count the spans of a batch."""
        from data_pipeline.decontaminate.match import CLUSTER, RUN

        documents_N = np.repeat(np.arange(spans.documents_D1.size - 1), np.diff(spans.documents_D1))
        self.documents += spans.documents_D1.size - 1
        for name, chosen in (
            ("clusters", spans.kind_N == CLUSTER), ("answered", spans.answered_N), ("runs", spans.kind_N == RUN),
        ):  # fmt: skip
            self.items[name].update(spans.item_N[chosen].tolist())
            pairs = np.unique(np.stack([spans.benchmark_N[chosen], documents_N[chosen]], 1), axis=0)
            for b, count in zip(*np.unique(pairs[:, 0], return_counts=True), strict=True):
                of = self.contaminated.setdefault(index.benchmarks[b], {})
                of[name] = of.get(name, 0) + int(count)

    def merge(self, other: Found) -> None:
        """Add the counts of other documents."""
        self.documents += other.documents
        for benchmark, counts in other.contaminated.items():
            of = self.contaminated.setdefault(benchmark, {})
            for name, count in counts.items():
                of[name] = of.get(name, 0) + count
        for name, items in other.items.items():
            self.items[name] |= items


def certify(evaluations: Sequence[Evaluation], index: Index, found: Found, action: Action) -> dict[str, Any]:
    """The certificate, ready for JSON."""
    indexed = np.bincount(index.benchmark_I, minlength=len(index.benchmarks))
    benchmarks = {
        evaluation.benchmark: {
            "files": dict(sorted(evaluation.files.items())),
            "fields": evaluation.fields,
            "items_sha256": _items_digest(evaluation),
            "items_read": len(evaluation.items),
            "items": int(indexed[b]),
        }
        for b, evaluation in enumerate(evaluations)
    }
    method = asdict(index.method)
    return filled({"format": FORMAT, "action": action, "method": method, "benchmarks": benchmarks}, index, found)


def filled(certificate: Mapping[str, Any], index: Index, found: Found) -> dict[str, Any]:
    """A certificate with other counts, of the same index."""
    benchmarks: dict[str, Any] = {}
    for b, (name, known) in enumerate(certificate["benchmarks"].items()):
        counts = found.contaminated.get(name, {})
        of = {kind: sum(1 for item in items if index.benchmark_I[item] == b) for kind, items in found.items.items()}
        benchmarks[name] = {
            **known,
            "contaminated_documents": {kind: counts.get(kind, 0) for kind in found.items},
            "contaminated_items": of,
            "contaminated_fraction": round(of["clusters"] / max(known["items"], 1), 6),
        }
    content = {key: value for key, value in certificate.items() if key != "sha256"}
    return _signed({**content, "documents": found.documents, "benchmarks": benchmarks})


def check(certificate: Mapping[str, Any] | None, where: str = "") -> None:
    """Raise DataError where a certificate is of a newer format, or was changed since it was made; None is none.

    `where` it lies goes before the message.
    """
    if certificate is None:
        return
    at = f"{where}: " if where else ""
    version = certificate.get("format") if isinstance(certificate, Mapping) else None
    if version != FORMAT:
        raise DataError(
            f"{at}a decontamination certificate of format {version}; this version reads {FORMAT}: "
            "use the version that wrote it, or curate again"
        )
    content = {name: value for name, value in certificate.items() if name != "sha256"}
    if _signed(content)["sha256"] != certificate.get("sha256"):
        raise DataError(
            f"{at}a decontamination certificate does not have the sha256 it states: it was changed; restore it from a "
            "copy, or curate again"
        )


def covers(certificate: Mapping[str, Any] | None, benchmark: str, files: Mapping[str, str] | None = None) -> Covered:
    """Whether a benchmark was kept out: `files` (name -> sha256) are those that are to be scored.

    "yes" where the benchmark was, and each of these files by its content, whatever its name; "other files" where the
    benchmark was by other files; "no" where it was not, or there is no certificate. Without `files` the name decides.
    """
    of = (certificate or {}).get("benchmarks", {}).get(benchmark)
    if of is None:
        return "no"
    return "yes" if set((files or {}).values()) <= set(of["files"].values()) else "other files"


def _items_digest(evaluation: Evaluation) -> str:
    digest = hashlib.sha256()
    for item in evaluation.items:
        digest.update(json.dumps([item.name, item.forms, item.answers, item.others]).encode() + b"\n")
    return digest.hexdigest()


def _signed(content: dict[str, Any]) -> dict[str, Any]:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return {**content, "sha256": hashlib.sha256(plain).hexdigest()}

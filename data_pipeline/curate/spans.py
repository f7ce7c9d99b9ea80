"""Where documents hold items of benchmarks, as records in a file of each part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.decontaminate.actions import Span
from data_pipeline.decontaminate.match import CLUSTER, Spans
from data_pipeline.engine import records

SPAN = np.dtype(
    [
        ("key", np.uint64), ("kind", np.uint8), ("start", np.int64), ("stop", np.int64), ("item", np.uint32),
        ("benchmark", np.uint16), ("score", np.float32), ("answered", np.bool_), ("answer_start", np.int64),
        ("answer_stop", np.int64),
    ]
)  # fmt: skip
FILE = "spans.npy"


def as_records(documents_D: npt.NDArray[np.uint64], spans: Spans) -> records.Records:
    """The spans of a batch whose documents have these numbers."""
    found = np.zeros(spans.kind_N.size, SPAN)
    found["key"] = np.repeat(documents_D, np.diff(spans.documents_D1))
    for name in SPAN.names or ():
        if name != "key":
            found[name] = getattr(spans, f"{name}_N")
    return found


def write(folder: Path, batches: Sequence[records.Records]) -> None:
    """Write the spans of a part."""
    records.write(folder / FILE, np.concatenate([np.empty(0, SPAN), *batches]))


def read(folder: Path) -> records.Records:
    """All of a part, by ascending document."""
    found: records.Records = np.load(folder / FILE, allow_pickle=False)
    return found


def as_spans(found: records.Records, documents_D: npt.NDArray[np.uint64]) -> Spans:
    """What `as_records` took, of documents with these ascending numbers only."""
    found = found[np.isin(found["key"], documents_D)]
    begins = np.searchsorted(found["key"], documents_D)
    return Spans(
        np.append(begins, len(found)),
        *(found[f"{name}"] for name in (
            "kind", "start", "stop", "item", "benchmark", "score", "answered", "answer_start", "answer_stop",
        )),
    )  # fmt: skip


def of_items(found: records.Records) -> dict[int, list[Span]]:
    """By document, the characters of each question that is there, and of the answer near it.

    Runs of words are reported and not acted on: thirteen words in a row are most often a quotation or a phrase.
    """
    places: dict[int, list[Span]] = {}
    for one in found[found["kind"] == CLUSTER]:
        of_document = places.setdefault(int(one["key"]), [])
        of_document.append((int(one["start"]), int(one["stop"])))
        if one["answered"] and one["answer_start"] >= 0:
            of_document.append((int(one["answer_start"]), int(one["answer_stop"])))
    return places

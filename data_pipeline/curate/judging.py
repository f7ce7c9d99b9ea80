"""The task that judges: limits against the columns of a part. No text is looked at, so it takes seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.curate import inspectors, naming, spans
from data_pipeline.curate.columns import SCRUBBED
from data_pipeline.curate.reading import DOCUMENTS
from data_pipeline.decontaminate import actions
from data_pipeline.decontaminate.actions import Action
from data_pipeline.decontaminate.certificate import Found
from data_pipeline.engine import records
from data_pipeline.harm import prohibited
from data_pipeline.signals import COLUMNS, thresholds
from data_pipeline.signals.thresholds import Thresholds

GONE = np.dtype([("key", np.uint64)])
GONE_FILE, REASONS = "gone.npy", "reasons.parquet"
BEYOND = "beyond_limit"  # of what `limit_bytes` leaves unread: it is counted nowhere
_COLUMNS = (
    "id", "language", "language_confidence", *COLUMNS, *SCRUBBED, "bad_words", "toxicity", "quality",
    "extracted_bytes", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a document must keep to stay; None where something does not matter."""

    languages: tuple[str, ...]
    language_confidence: float
    thresholds: Mapping[str, Thresholds] = field(hash=False)
    least_quality: float | None
    most_toxicity: float | None
    most_bad_words: int | None
    most_private_items: int | None
    action: Action


@dataclass(frozen=True)
class Judge:
    """A part whose documents have the numbers from `first` on; `budget` is how many bytes of text its source may still
    give, None where it has no limit."""

    folder: Path
    first: int
    budget: int | None
    index: str | None
    limits: Limits


def judge(task: Judge, folder: Path) -> dict[str, Any]:
    """Write the reason of each document ("" where it stays), the numbers of those that go, and the names of all."""
    table = pq.read_table(task.folder / DOCUMENTS, columns=list(_COLUMNS))
    numbers_D = np.uint64(task.first) + np.arange(table.num_rows, dtype=np.uint64)
    found = spans.read(task.folder)
    reasons_D = _reasons(table, task, found, numbers_D)
    pq.write_table(pa.table({"reason": pa.array(reasons_D, pa.string())}), folder / REASONS)
    gone = np.zeros(int(np.count_nonzero(reasons_D != "")), GONE)
    gone["key"] = numbers_D[reasons_D != ""]
    records.write(folder / GONE_FILE, gone)
    named_D = (reasons_D != BEYOND) & (reasons_D != prohibited.REASON)
    naming.write(folder, table["id"].filter(pa.array(named_D)).to_pylist(), numbers_D[named_D])
    return {"found": _found(task, table, found, numbers_D, reasons_D)}


def _reasons(
    table: pa.Table, task: Judge, found: records.Records, numbers_D: npt.NDArray[np.uint64]
) -> npt.NDArray[np.object_]:
    """The first reason of each document, in the order of `card.reasons`."""
    limits = task.limits
    columns = {name: _values(table[name]) for name in COLUMNS}
    languages = np.array(table["language"].to_pylist(), dtype=object)
    reasons_D = np.array(table["reason"].to_pylist(), dtype=object)

    def drop(broken_D: npt.NDArray[np.bool_], reason: str) -> None:
        reasons_D[broken_D & (reasons_D == "")] = reason

    if task.budget is not None:
        size_D = table["extracted_bytes"].to_numpy()
        reasons_D[np.cumsum(size_D) - size_D >= task.budget] = BEYOND
    drop(table["language_confidence"].to_numpy() < np.float32(limits.language_confidence), "language_uncertain")
    if limits.languages:
        drop(~np.isin(languages.astype(str), limits.languages), "language_unwanted")
    measured_D = reasons_D == ""
    by_rules = np.full(len(reasons_D), "", dtype=object)
    by_rules[measured_D] = thresholds.reasons(
        {name: column[measured_D] for name, column in columns.items()}, list(languages[measured_D]), limits.thresholds
    )
    reasons_D[measured_D] = by_rules[measured_D]
    if limits.least_quality is not None:
        drop(_values(table["quality"]) < np.float32(limits.least_quality), "low_quality")
    if limits.most_toxicity is not None:
        drop(_values(table["toxicity"]) > np.float32(limits.most_toxicity), "toxic")
    if limits.most_bad_words is not None:
        drop(_values(table["bad_words"]) > limits.most_bad_words, "bad_words")
    if limits.most_private_items is not None:
        drop(sum(table[name].to_numpy() for name in SCRUBBED) > limits.most_private_items, "private_items")
    if limits.action == "drop":
        drop(np.isin(numbers_D, list(spans.of_items(found))), actions.REASON)
    return reasons_D


def _values(column: pa.ChunkedArray) -> Any:
    """Numbers, with NaN for what was not measured where they are floats and -1 where they are whole."""
    return column.fill_null(-1 if pa.types.is_integer(column.type) else float("nan")).to_numpy()


def _found(task: Judge, table: pa.Table, found: records.Records, numbers_D: Any, reasons_D: Any) -> dict[str, Any]:
    """What the documents that were looked at hold of benchmarks."""
    looked_at_D = np.array([not reason for reason in table["reason"].to_pylist()], np.bool_) & (reasons_D != BEYOND)
    counted = Found()
    if (index := inspectors.index_of(task.index)) is not None:
        counted.add(index, spans.as_spans(found, numbers_D[looked_at_D]))
    return {
        "documents": counted.documents,
        "contaminated": counted.contaminated,
        "items": {name: sorted(items) for name, items in counted.items.items()},
    }

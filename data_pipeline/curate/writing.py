"""The task that writes: a run of parts as they were read becomes one part of what is kept, and parts of what is not.

What is cut out of texts is cut here: items of benchmarks, and lines and paragraphs that many documents share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.card.tally import Tally
from data_pipeline.curate import naming, spans
from data_pipeline.curate.columns import COPIES, KEPT, REMOVED
from data_pipeline.curate.judging import BEYOND
from data_pipeline.curate.parts import PartWriter
from data_pipeline.curate.reading import DOCUMENTS
from data_pipeline.curate.settling import LETTERS, SETTLED
from data_pipeline.decontaminate import actions
from data_pipeline.decontaminate.actions import Action, Span
from data_pipeline.duplicates import lines
from data_pipeline.engine import records
from data_pipeline.harm import prohibited
from data_pipeline.signals.tokens import Tokens

MOST_CUT = 0.5  # of the letters of a document; of which more is cut out goes as a whole
REPEATED_LINES = "repeated_lines"


class Part(NamedTuple):
    """What a task read, what was settled of it, the number of its first document, and the label of its source."""

    folder: Path
    settled: Path
    first: int
    label: str


@dataclass(frozen=True)
class Write:
    """`common` are the files of `lines.count`, none where no lines are cut; `repeats` those of `naming.repeats`."""

    parts: Sequence[Part]
    common: Sequence[Path]
    repeats: Sequence[Path]
    action: Action
    part_bytes: int


def write(task: Write, folder: Path) -> dict[str, Any]:
    """Write `part-*.parquet` and `removed-*.parquet`. Returns their facts, and what was counted."""
    kept = PartWriter(folder, "part", KEPT, float("inf"))
    removed = PartWriter(folder, "removed", REMOVED, task.part_bytes)
    tally = Tally()
    for part in task.parts:
        for table, reasons_R in _decided(task, part):
            _count(tally, table, reasons_R, part.label)
            kept.add(table.filter(pa.array(reasons_R == "")).select(KEPT.names))
            shown_R = ~np.isin(reasons_R, ["", BEYOND, prohibited.REASON])
            removed.add(
                table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons_R, pa.string()))
                .filter(pa.array(shown_R))
                .select(REMOVED.names)
            )
    return {"kept": kept.close(), "removed": removed.close(), "tally": tally.to_json()}


def _decided(task: Write, part: Part) -> Iterator[tuple[pa.Table, npt.NDArray[np.object_]]]:
    """Row groups of a part with their last texts and names, and the reason of each."""
    settled = pq.read_table(part.settled / SETTLED)
    reasons_D = np.array(settled["reason"].to_pylist(), dtype=object)
    items = spans.of_items(spans.read(part.folder)) if task.action == "cut" else {}
    repeated = records.read(task.repeats, part.first, part.first + len(reasons_D), naming.REPEAT)
    numbers = {int(one["key"]) - part.first: int(one["number"]) for one in repeated}
    at = 0
    with pq.ParquetFile(part.folder / DOCUMENTS) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            stop = at + table.num_rows
            reasons_R = reasons_D[at:stop].copy()
            settled_R = settled.slice(at, table.num_rows)
            texts = table["text"].to_pylist()
            cut_R = _cut(task, part.first + at, texts, reasons_R, items)
            ids = [naming.named(wanted, numbers.get(at + row, 1)) for row, wanted in enumerate(table["id"].to_pylist())]
            for name, column in (("text", texts), ("id", ids)):
                table = table.set_column(table.schema.get_field_index(name), name, pa.array(column, pa.string()))
            for name in COPIES:
                table = table.append_column(name, settled_R[name])
            table = table.append_column("cut_characters", pa.array(cut_R))
            yield table, reasons_R
            at = stop


def _cut(
    task: Write, first: int, texts: list[str], reasons_R: npt.NDArray[np.object_], items: Mapping[int, list[Span]]
) -> npt.NDArray[np.int64]:
    """Cut the texts that stay, and say which of them go after all. Returns the characters of lines that were cut."""
    for row in np.flatnonzero(reasons_R == "").tolist():
        if places := items.get(first + row):
            reasons_R[row], texts[row] = actions.decide(texts[row], places, "cut")
    cut_R = np.zeros(len(texts), np.int64)
    rows = np.flatnonzero(reasons_R == "")
    if not task.common or not rows.size:
        return cut_R
    numbers = np.uint64(first) + rows.astype(np.uint64)
    found = lines.cuts(Tokens.of([texts[row] for row in rows.tolist()]), numbers, LETTERS, task.common)
    reasons_R[rows[found.shares_D > MOST_CUT]] = REPEATED_LINES
    for place, of_document in itertools.groupby(found.spans_S3.tolist(), key=lambda span: span[0]):
        row = int(rows[place])
        if not reasons_R[row]:
            whole = texts[row]
            texts[row] = lines.cut(whole, [(begin, stop) for _, begin, stop in of_document]).strip()
            cut_R[row] = len(whole) - len(texts[row])
    return cut_R


def _count(tally: Tally, table: pa.Table, reasons_R: Any, label: str) -> None:
    names = [name for name in table.column_names if name in _COUNTED]
    for row, reason in zip(table.select(names).to_pylist(), reasons_R, strict=True):
        if reason == BEYOND:
            continue
        if reason == prohibited.REASON:
            tally.prohibited(label, 1)
        else:
            tally.add(row, reason, row["extracted_bytes"], label)


_COUNTED = frozenset(
    ("id", "text", "source", "language", "license", "quality", "extracted_bytes", *COPIES, "cut_characters")
) | frozenset(name for name in KEPT.names if name.startswith("scrubbed_"))

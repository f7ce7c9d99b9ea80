"""The task that settles, of a part, which documents stay when equal ones and near-duplicates are gone, and counts the
lines and paragraphs of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.batched import batched
from data_pipeline.curate.columns import COPIES
from data_pipeline.curate.judging import REASONS
from data_pipeline.curate.reading import BATCH_CHARACTERS, DOCUMENTS
from data_pipeline.duplicates import lines, survivors
from data_pipeline.duplicates.steps import Found
from data_pipeline.engine import records
from data_pipeline.signals.tokens import Tokens

SETTLED = "settled.parquet"
LETTERS = 30  # fewest of a line or paragraph that counts as one: shorter ones repeat in good text, too
REASONS_OF = ("exact_duplicate", "near_duplicate")


@dataclass(frozen=True)
class Settle:
    """A part whose documents have the numbers from `first` on. `judged` is what `judge` wrote of it; `equal` and
    `similar` what was found among all, the latter None where nobody asked. `lines` says whether to count them."""

    folder: Path
    first: int
    judged: Path
    equal: Found
    similar: Found | None
    lines: bool


def settle(task: Settle, folder: Path) -> dict[str, Any]:
    """Write the reason of each document so far and for how many it stands. Returns how many stay, and their bytes."""
    reasons_D = np.array(pq.read_table(task.judged / REASONS)["reason"].to_pylist(), dtype=object)
    count = len(reasons_D)
    copies = {}
    for name, reason, found in zip(COPIES, REASONS_OF, (task.equal, task.similar), strict=True):
        copies[name] = np.ones(count, np.int64)
        if found is not None:
            removed = records.read(found.removed, task.first, task.first + count, survivors.REMOVED)
            reasons_D[(removed["key"] - np.uint64(task.first)).astype(np.int64)] = reason
            kept = records.read(found.kept, task.first, task.first + count, survivors.KEPT)
            copies[name][(kept["key"] - np.uint64(task.first)).astype(np.int64)] = kept["size"]
    table = pa.table({"reason": pa.array(reasons_D, pa.string()), **copies})
    pq.write_table(table, folder / SETTLED)
    stays_D = reasons_D == ""
    if task.lines:
        _write_passages(task, folder, np.uint64(task.first) + np.flatnonzero(stays_D).astype(np.uint64), stays_D)
    sizes_D = pc.binary_length(pq.read_table(task.folder / DOCUMENTS, columns=["text"])["text"]).to_numpy()
    return {"documents": int(np.count_nonzero(stays_D)), "bytes": int(sizes_D[stays_D].sum())}


def _write_passages(
    task: Settle, folder: Path, numbers_K: npt.NDArray[np.uint64], stays_D: npt.NDArray[np.bool_]
) -> None:
    texts = texts_of(task.folder, stays_D)
    counted, at = [], 0
    for batch in batched(texts, len, BATCH_CHARACTERS):
        numbers = numbers_K[at : at + len(batch)]
        counted.append(lines.counted(numbers, lines.passages(Tokens.of(batch), LETTERS)))
        at += len(batch)
    lines.write(folder, counted)


def texts_of(folder: Path, chosen_D: npt.NDArray[np.bool_]) -> Sequence[str]:
    """The texts of some documents of a part."""
    texts: list[str] = []
    at = 0
    with pq.ParquetFile(folder / DOCUMENTS) as file:
        for batch in file.iter_batches(columns=["text"]):
            texts += batch["text"].filter(pa.array(chosen_D[at : at + batch.num_rows])).to_pylist()
            at += batch.num_rows
    return texts

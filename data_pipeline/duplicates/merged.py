"""What many tasks left behind for the steps that compare documents, as if few had: steps open the files of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.duplicates import exact, minhash, ranks, sketches
from data_pipeline.engine import records
from data_pipeline.engine.records import Do


@dataclass(frozen=True)
class Merge:
    """Task: the folders of some tasks that read documents as one, these in the order of their documents."""

    folders: Sequence[Path]


def merge(task: Merge, folder: Path) -> dict[str, Any]:
    """Write fingerprints, bands, ranks and sketches of all."""
    for name in (exact.FILE, minhash.FILE, ranks.FILE):
        records.merge_into([one / name for one in task.folders], folder / name)
    sketches.join(task.folders, folder)
    return {"folders": len(task.folders)}


def few(folders: Sequence[Path], do: Do) -> list[Path]:
    """The folders, or where there are many, fewer that hold the same."""
    if len(folders) <= records.MANY:
        return [*folders]
    tasks = [Merge(folders[first : first + records.MANY]) for first in range(0, len(folders), records.MANY)]
    return [folder for folder, _ in do("merge", merge, tasks)]

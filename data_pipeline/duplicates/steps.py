"""The order of the steps that find duplicates among documents that were read.

Every step is a list of tasks over ranges, from files to files; how many there are depends on bytes alone. Where one
range holds all, one task does all steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.duplicates import clusters, exact, pairs, survivors
from data_pipeline.duplicates.minhash import FILE as BANDS_FILE
from data_pipeline.engine import records
from data_pipeline.engine.records import Do

RANGE_BYTES = 64 * 2**20  # steps hold up to 20 times as much, where all edges of a range change


@dataclass(frozen=True)
class Found:
    """Files of records: documents that go (`survivors.REMOVED`), and survivors of clusters (`survivors.KEPT`)."""

    removed: list[Path]
    kept: list[Path]


def equal(folders: Sequence[Path], gone: Sequence[Path], first_new: int, do: Do, most: int = RANGE_BYTES) -> Found:
    """Equal texts among the documents of some folders (earlier ones too), but for those that are gone already."""
    ranges = records.ranges(_bytes(folders, exact.FILE), most)
    tasks = [exact.Group(folders, gone, first_new, *bounds) for bounds in ranges]
    return _found(do("equal", exact.group, tasks))


@dataclass(frozen=True)
class Similar:
    """Task: find near-duplicates. Fields as in the tasks of its steps."""

    folders: Sequence[Path]
    gone: Sequence[Path]
    sketch: int
    least: float
    first_new: int


def similar(
    folders: Sequence[Path],
    gone: Sequence[Path],
    first_new: int,
    sketch: int,
    least: float,
    do: Do,
    most: int = RANGE_BYTES,
) -> Found:
    """Near-duplicates: of a Jaccard similarity of at least `least`, by sketches of at most so many values."""
    task = Similar(folders, gone, sketch, least, first_new)
    if _bytes(folders, BANDS_FILE) <= most:
        return _found(do("similar", all_steps, [task]))
    return _steps(task, do, most)


def all_steps(task: Similar, folder: Path) -> dict[str, Any]:
    """Find near-duplicates in one task; writes what `survivors.survive` writes."""
    inner = folder / "steps"

    def do(name: str, work: Callable[[Any, Path], dict[str, Any]], tasks: Sequence[Any]) -> list[tuple[Path, Any]]:
        folders = [inner / f"{name}-{number}" for number in range(len(tasks))]
        for one in folders:
            one.mkdir(parents=True)
        return [(one, work(task, one)) for task, one in zip(tasks, folders, strict=True)]

    found = _steps(task, do, RANGE_BYTES)
    removed = np.concatenate([np.load(path, allow_pickle=False) for path in found.removed])
    shutil.rmtree(inner)
    return survivors.write(folder, removed["key"], removed["survivor"])


def _steps(task: Similar, do: Do, most: int) -> Found:
    folders, gone, sketch, least, first_new = task.folders, task.gone, task.sketch, task.least, task.first_new
    ranges = records.ranges(_bytes(folders, BANDS_FILE), most)
    done = do("candidates", pairs.candidates, [pairs.Candidates(folders, first_new, *bounds) for bounds in ranges])
    candidates = [folder / name for folder, facts in done for name in facts["files"]]
    ranges = records.balanced(candidates, most)
    done = do("verify", pairs.verify, [pairs.Verify(candidates, folders, sketch, least, *bounds) for bounds in ranges])
    edges = [folder / pairs.FILE for folder, _ in done]
    links = clusters.components(edges, do, most)
    ranges = records.balanced(edges, most)
    done = do("gather", clusters.gather, [clusters.Gather(edges, links, *bounds) for bounds in ranges])
    members = [folder / clusters.MEMBERS for folder, _ in done]
    ranges = records.balanced(members, most)
    tasks = [survivors.Survive(members, folders, gone, sketch, least, first_new, *bounds) for bounds in ranges]
    return _found(do("survive", survivors.survive, tasks))


def _bytes(folders: Sequence[Path], name: str) -> int:
    return sum((folder / name).stat().st_size for folder in folders)


def _found(done: Sequence[tuple[Path, object]]) -> Found:
    folders = [folder for folder, _ in done]
    return Found([one / survivors.REMOVED_FILE for one in folders], [one / survivors.KEPT_FILE for one in folders])

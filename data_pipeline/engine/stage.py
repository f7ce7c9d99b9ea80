"""A stage: a list of tasks, each of which commits a folder. What is committed is never done again.

A task is a pure function of what describes it and of files that earlier stages committed, so it does not matter which
process does it, on which machine, or how often it was begun. It writes into a folder of its own attempt, which one
rename makes the folder of the task: whoever dies, at most the tasks that were being done are lost.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import textwrap
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from conf.exits import DataError
from data_pipeline.durable import sync

Task = TypeVar("Task")
Facts = dict[str, Any]

MOST_DEATHS = 3  # of workers that did the same task: it is not tried again
_SHOWN = 300  # characters of the description of a task
_FACTS = "facts.json"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class Stage(Generic[Task]):
    """Tasks that do not depend on one another.

    name    of the stage's folder; it names what the outputs depend on, so that others are never taken for them
    work    does a task: writes files into the folder given, and returns what is to be known of them, as plain JSON.
            Processes load it by its name: a function of a module, or `functools.partial` of one
    tasks   what describes each; their number and order do not depend on the number of workers
    """

    name: str
    work: Callable[[Task, Path], Facts]
    tasks: Sequence[Task]


def shown(task: tuple[int, Any]) -> str:
    """A task in messages: its number and how its description begins, which may be long."""
    return f"task {task[0]} ({textwrap.shorten(str(task[1]), _SHOWN)})"


class Engine(Protocol):
    """What does tasks in parallel."""

    def run(self, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        """Do `work` on each; gives the number of each that is done, in any order.

        Raises what `work` raises, and DataError where a task's workers died MOST_DEATHS times.
        """
        ...


def run(
    stage: Stage[Any],
    root: Path,
    engine: Engine,
    progress: Callable[[int, int], None],
    wanted: Sequence[int] | None = None,
) -> list[Facts]:
    """Do what is not committed yet; returns the facts of every task, in their order.

    `progress` is told how many tasks are done, of how many. `wanted` are the numbers of the tasks to do, where not all
    are. Raises what tasks raise; all that was committed stays.
    """
    folder = root / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    _remove_attempts(folder)
    numbers = range(len(stage.tasks)) if wanted is None else wanted
    waiting = [(number, stage.tasks[number]) for number in numbers if not folder_of(folder, number).exists()]
    done = len(numbers) - len(waiting)
    progress(done, len(numbers))
    for _ in engine.run(functools.partial(_perform, stage.work, folder), waiting):
        done += 1
        progress(done, len(numbers))
    _remove_attempts(folder)  # of workers that were killed
    return [facts_of(folder, number) for number in numbers]


def _remove_attempts(stage: Path) -> None:
    """Those that are left when nobody is at work on the stage."""
    for left in stage.glob("*.attempt"):
        shutil.rmtree(left)


def folder_of(stage: Path, number: int) -> Path:
    """What a task of the stage in that folder committed, or will commit."""
    return stage / f"{number:06d}"


def facts_of(stage: Path, number: int) -> Facts:
    """What a committed task said of its files. Raises DataError where it is damaged."""
    path = folder_of(stage, number) / _FACTS
    try:
        facts: Facts = json.loads(path.read_text("utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("no facts")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): delete the folder {path.parent}, then start again"
        ) from error
    return facts


def _perform(work: Callable[[Any, Path], Facts], stage: Path, numbered: tuple[int, Any]) -> int:
    """Do one task and commit it."""
    number, task = numbered
    committed = folder_of(stage, number)
    attempt = stage / f"{number:06d}-{uuid.uuid4().hex}.attempt"
    attempt.mkdir()
    try:
        facts = work(task, attempt)
        (attempt / _FACTS).write_text(json.dumps(facts, sort_keys=True) + "\n", "utf-8", newline="\n")
        for path in attempt.rglob("*"):
            sync(path)
        sync(attempt)
        try:
            os.rename(attempt, committed)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise  # else somebody did the same task meanwhile, and wrote the same
        sync(stage)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)
    return number

"""Does stages in the folder that keeps what was done, and tells how far they are."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.curate.publish import digest
from data_pipeline.engine import stage
from data_pipeline.engine.records import Do
from data_pipeline.engine.stage import Engine, Facts, Stage

_TELL_SECONDS = 10.0


@dataclass(frozen=True)
class Stages:
    """`root` is the folder."""

    root: Path
    engine: Engine

    def do(
        self,
        name: str,
        depends: Any,
        work: Callable[[Any, Path], Facts],
        tasks: Sequence[Any],
        wanted: Sequence[int] | None = None,
    ) -> list[tuple[Path, Facts]]:
        """Do the tasks that are not committed yet; returns folder and facts of each of them, or of the wanted ones.

        depends   all that the outputs depend on, as JSON: outputs of something else are never taken for them
        """
        one = Stage(f"{name}-{digest(depends)[:16]}", work, tasks)
        numbers = range(len(tasks)) if wanted is None else wanted
        facts = stage.run(one, self.root, self.engine, _told(name), wanted)
        return [(stage.folder_of(self.root / one.name, n), of_task) for n, of_task in zip(numbers, facts, strict=True)]

    def depending(self, depends: Any) -> Do:
        """Does stages whose outputs all depend on the same."""

        def do(name: str, work: Callable[[Any, Path], Facts], tasks: Sequence[Any]) -> list[tuple[Path, Facts]]:
            return self.do(name, depends, work, tasks)

        return do


def _told(name: str) -> Callable[[int, int], None]:
    """Says now and then how far a stage is."""
    last = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            print(f"gemcutter curate: {name}: {done} of {of} tasks", file=sys.stderr, flush=True)

    return progress

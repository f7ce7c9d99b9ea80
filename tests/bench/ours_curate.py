"""A curation as `gemcutter curate` does it, that tells when each stage began and ended.

    python -m tests.bench.ours_curate THRESHOLDS OVERRIDE ...

THRESHOLDS is `curate.thresholds` as JSON. Prints one line of JSON: the summary of the job, and of each stage its name,
when it began and ended (CLOCK_MONOTONIC), its tasks, and whether its folder was there already.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conf.compose import compose
from conf.exits import ERRORS
from conf.processes import end_with
from data_pipeline.curate import curate, job
from data_pipeline.curate.stages import Stages
from data_pipeline.engine.stage import Facts

STAGES: list[dict[str, Any]] = []


class Timed(Stages):
    """Stages that are told of in `STAGES`."""

    def do(
        self,
        name: str,
        depends: Any,
        work: Callable[[Any, Path], Facts],
        tasks: Sequence[Any],
        wanted: Sequence[int] | None = None,
    ) -> list[tuple[Path, Facts]]:
        before, begin = set(self.root.glob("*-*")), time.monotonic()
        done = super().do(name, depends, work, tasks, wanted)
        STAGES.append(
            {
                "name": name,
                "begin": begin,
                "end": time.monotonic(),
                "tasks": len(tasks if wanted is None else wanted),
                "reused": not set(self.root.glob("*-*")) - before,
            }
        )
        return done


def main(thresholds: str, overrides: list[str]) -> int:
    job.Stages = Timed  # type: ignore[misc]
    try:
        asked = compose("curate", overrides)
        asked.curate.thresholds = json.loads(thresholds)
        summary = curate(asked)
    except ERRORS as error:
        print(f"curate: {error}", file=sys.stderr)
        return error.code
    print(json.dumps({"summary": summary, "stages": STAGES}))
    return 0


if __name__ == "__main__":
    end_with()
    sys.exit(main(sys.argv[1], sys.argv[2:]))

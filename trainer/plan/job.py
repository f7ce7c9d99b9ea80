"""The job `plan`: what training would need, whether it fits, and what to change."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from rich.console import Console

from conf import schema
from conf.exits import DONE
from trainer.plan.planned import plan_of
from trainer.plan.remedy import fitting, largest_micro_batch
from trainer.plan.show import as_json, show

REMEDIES = 6  # shown at most


def plan(job: schema.Job) -> int:
    """Print the plan of a job, and write it where `plan.output` says.

    Raises ConfigError where nothing can be planned, DataError where the shards to plan for are broken.
    """
    planned = plan_of(job)
    most = largest_micro_batch(planned)
    remedies = list(itertools.islice(fitting(job, planned), REMEDIES)) if planned.fits is False else []
    # In a file or a pipe nothing limits the width.
    show(Console(width=None if Console().is_terminal else 120), job, planned, most, remedies)
    if job.plan.output is not None:
        path = Path(job.plan.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(as_json(job, planned, most, remedies), indent=1) + "\n")
    return DONE

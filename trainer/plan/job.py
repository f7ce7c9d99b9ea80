"""The job `plan`: what training would need, whether it fits, and what to change."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from conf import schema
from conf.exits import DONE
from trainer.plan.planned import Plan, on_hardware, plan_of
from trainer.plan.remedy import Remedy, fitting, largest_micro_batch
from trainer.plan.show import as_json, show
from trainer.plan.show_compiled import compiled_as_json, show_compiled
from trainer.plan.show_sweep import show_sweep, sweep_as_json
from trainer.plan.sweep import sweep
from trainer.plan.tpu.compiled import UNCOMPILED, CompiledPlan, compiled_plan, compiles, wants_compiler
from trainer.plan.tpu.compiler import CompilerFailed
from trainer.plan.tpu.step import Compiler

REMEDIES = 6  # shown at most
FAILED = 1  # exit code where the compiler fails: neither the job's fault nor its data's


def plan(job: schema.Job) -> int:
    """Print the plan of a job, or of those around it, and write it where `plan.output` says.

    Raises ConfigError where nothing can be planned, DataError where the shards to plan for are broken.
    """
    job = on_hardware(job)
    # In a file or a pipe nothing limits the width.
    console = Console(width=None if Console().is_terminal else 120)
    planned = plan_of(job)
    try:
        said = _swept(console, job, planned) if job.plan.sweep else _planned(console, job, planned)
    except CompilerFailed as error:
        print(f"gemcutter plan: {error}\nplan.compile=false plans by formulas only", file=sys.stderr)
        return FAILED
    if job.plan.output is not None:
        path = Path(job.plan.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said, indent=1) + "\n")
    return DONE


def _planned(console: Console, job: schema.Job, planned: Plan) -> dict[str, Any]:
    most = largest_micro_batch(planned)
    if compiles(job, planned):
        with Compiler() as compiler:
            found = compiled_plan(compiler, job, planned)
        remedies = [] if found.fits else _remedies(job, planned, found)
        show_compiled(console, job, found, remedies)
        return as_json(job, planned, most, remedies) | {"fits": found.fits, "compiled": compiled_as_json(found)}
    remedies = _remedies(job, planned) if planned.fits is False else []
    show(console, job, planned, most, remedies)
    if wants_compiler(job, planned):
        console.print(UNCOMPILED, highlight=False)
    return as_json(job, planned, most, remedies) | {"compiled": None}


def _remedies(job: schema.Job, planned: Plan, found: CompiledPlan | None = None) -> list[Remedy]:
    """Changes with which formulas say that it fits, corrected by how far they are off for the job as it is."""
    limit, off = None, 1.0
    if found is not None:
        limit = found.compiled.limit_bytes
        off = max(off, found.hbm / planned.memory.total) if found.hbm else off
    return list(itertools.islice(fitting(job, planned, limit, off), REMEDIES))


def _swept(console: Console, job: schema.Job, planned: Plan) -> dict[str, Any]:
    compiled = compiles(job, planned)
    found = sweep(job, planned, compiled, lambda line: console.print(line, highlight=False, soft_wrap=True))
    show_sweep(console, job, planned, found)
    if wants_compiler(job, planned) and not compiled:
        console.print(UNCOMPILED, highlight=False)
    return sweep_as_json(job, planned, found)

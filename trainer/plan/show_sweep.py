"""What a sweep found, for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from conf import schema
from trainer.plan.candidates import Candidate
from trainer.plan.planned import Plan
from trainer.plan.show import heading
from trainer.plan.show_compiled import compiled_as_json
from trainer.plan.sweep import Sweep, overrides

SHOWN = 24  # candidates in the table, the best first


def sweep_as_json(job: schema.Job, planned: Plan, found: Sweep) -> dict[str, Any]:
    """Candidates, best first, and the one to take; bytes and seconds are those of one chip and step."""
    best = found.best
    return {
        "format": schema.FORMAT,
        "model": {"size": job.model.size},
        "hardware": job.hardware,
        "processes": planned.layout.processes,
        "keeps_tokens_per_step": found.keeps_batch,
        "candidates": [_one_as_json(one) for one in found.candidates],
        "recommended": None if best is None else best.changes,
    }


def _one_as_json(one: Candidate) -> dict[str, Any]:
    return {
        "changes": one.changes,
        "fits": one.fits,
        "memory_bytes": one.memory,
        "micro_batches": one.planned.micro_batches,
        "tokens_per_step": one.planned.tokens,
        "step_seconds": one.step,
        "tokens_per_second": one.tokens_per_second or None,
        "mfu": one.mfu,
        "failed": one.failed,
        "compiled": compiled_as_json(one.compiled) if one.compiled else None,
    }


def show_sweep(console: Console, job: schema.Job, planned: Plan, found: Sweep) -> None:
    """Print a table of candidates, and what to add to the command."""
    members = "chips" if planned.layout.device == "xla" else "processes"
    console.print(
        heading(job, planned, members).replace(f"micro_batch={planned.layout.rows} of ", "rows of "), highlight=False
    )
    compiled = any(one.compiled for one in found.candidates)
    table = Table()
    for name in ("mesh", "remat", "", "rows", "GiB", *(["traffic"] if compiled else []), "s a step", "tokens/s", "MFU"):
        table.add_column(name, justify="left" if name in ("mesh", "remat", "") else "right", no_wrap=True)
    for one in found.candidates[:SHOWN]:
        table.add_row(*_row(one, compiled))
    console.print(table)
    if (rest := len(found.candidates) - SHOWN) > 0:
        console.print(f"and {rest} more, in plan.output", highlight=False)
    by = "compiled: traffic is over the least that the sharding needs" if compiled else "by formulas"
    console.print(
        f"{len(found.candidates)} candidates, {by}; rows are those of micro_batch, seconds are at least, tokens/s and "
        "MFU at most, as data sheets go",
        highlight=False,
    )
    kept = "is kept" if found.keeps_batch else "cannot be shared by the job's own mesh, so any other was tried"
    console.print(f"{planned.batch}={schema.batch_sizes(job)[planned.batch]} {kept}", highlight=False)
    if found.best is None:
        console.print("[bold red]none fits[/]: use larger chips, or more of them", highlight=False)
    else:
        console.print(f"[bold green]recommended[/]: {overrides(found.best)}", highlight=False, soft_wrap=True)


def _row(one: Candidate, compiled: bool) -> list[str]:
    mesh = " x ".join(f"{axis} {n}" for axis, n in one.planned.layout.axes.items() if n > 1)
    ratio = one.compiled.ratio if one.compiled else None
    return [
        mesh or "one chip",
        one.planned.layout.remat,
        "compiler failed" if one.failed else "fits" if one.fits else "does not fit",
        str(one.planned.layout.rows),
        "" if one.memory is None else f"{one.memory / 2**30:.2f}",
        *(["" if ratio is None else f"{ratio:.2f}"] if compiled else []),
        "" if one.step is None else f"{one.step:.4f}",
        f"{one.tokens_per_second:,.0f}" if one.step else "",
        "" if one.mfu is None else f"{one.mfu:.1%}",
    ]

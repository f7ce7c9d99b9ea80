"""A plan for people, as tables and advice, and for programs, as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table

from conf import schema
from trainer.model.config import num_parameters
from trainer.plan.planned import SPARE, Plan
from trainer.plan.remedy import Remedy
from trainer.plan.roofline import exchange_time


def as_json(job: schema.Job, planned: Plan, most: int | None, remedies: list[Remedy]) -> dict[str, Any]:
    """The plan as plain values; bytes, seconds and operations are those of one process and step unless they say so."""
    layout, time = planned.layout, planned.time
    return {
        "format": schema.FORMAT,
        "model": {"size": job.model.size, "parameters": num_parameters(layout.config)},
        "processes": layout.processes,
        "mesh": layout.axes,
        "hardware": job.hardware,
        "remat": layout.remat,
        "attention": layout.kernel,
        "micro_batch": layout.rows,
        "micro_batches": planned.micro_batches,
        "tokens_per_step": planned.tokens,
        "batch": planned.batch,
        "document_tokens": planned.layout.document,
        "memory_bytes": dataclasses.asdict(planned.memory) | {"total": planned.memory.total, "limit": planned.limit},
        "memory_is_upper_bound": layout.compiled and layout.remat != "selective",
        "fits": planned.fits,
        "largest_micro_batch": most,
        "model_flops_per_token": planned.model_flops / planned.tokens,
        "executed_flops": planned.executed_flops,
        "collectives": [dataclasses.asdict(one) for one in planned.collectives],
        "seconds": dataclasses.asdict(time) | {"step": time.step} if time else None,
        "mfu": planned.mfu,
        "remedies": [
            {"changes": changes, "memory_bytes": other.memory.total, "tokens_per_second": other.tokens_per_second}
            for changes, other in remedies
        ],
    }


def show(console: Console, job: schema.Job, planned: Plan, most: int | None, remedies: list[Remedy]) -> None:
    """Print it."""
    memory, hardware = planned.memory, planned.hardware
    console.print(heading(job, planned), highlight=False)
    table = Table("memory of one process", "GiB", "what")
    table.columns[1].justify = "right"
    for name, note in _PARTS.items():
        table.add_row(name, _gib(getattr(memory, name)), note)
    table.add_row("[bold]peak[/]", f"[bold]{_gib(memory.total)}[/]", f"in the {memory.moment}")
    if hardware is not None and planned.limit is not None:
        table.add_row("limit", _gib(planned.limit), f"{hardware.chip.name}, {SPARE:.0%} left for what is not tensors")
    console.print(table)
    _show_work(console, planned)
    _show_answer(console, job, planned, most, remedies)


def heading(job: schema.Job, planned: Plan, members: str = "processes") -> str:
    """What is planned."""
    layout = planned.layout
    mesh = " x ".join(f"{axis} {n}" for axis, n in layout.axes.items() if n > 1)
    return (
        f"[bold]{job.model.size}[/], {num_parameters(layout.config):,} parameters, on {job.hardware or layout.device}: "
        f"{layout.processes:,} {members}{f' ({mesh})' if mesh else ''}, micro_batch={layout.rows} of "
        f"{layout.sequence_length:,} positions, remat={layout.remat}, attention={layout.kernel}"
    )


_COMPILED = (
    "compile=true: compiled blocks keep less and compute cheap things again in the backward pass; kept and working "
    "activations are at most these"
)
_PARTS = {
    "masters": "fp32 weights",
    "moments": "of the optimizer, fp32",
    "average": "of the weights, fp32",
    "snapshot": "copy of these that a save is written from",
    "gradients": "fp32, of its shard",
    "gathered": "weights put together from all shards, with buffers",
    "reduced": "gradients on their way to be summed, with buffers",
    "kept": "activations for the backward pass",
    "working": "of the moment itself",
}


def _show_work(console: Console, planned: Plan) -> None:
    layout, hardware, time = planned.layout, planned.hardware, planned.time
    table = Table("work of one process in a step", "amount", "seconds at least")
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row(
        "matrix products", f"{planned.executed_flops / 1e12:,.2f} TFLOP", _seconds(time.compute if time else None)
    )
    for one in planned.collectives:
        seconds = None if hardware is None else exchange_time(one, layout, hardware)
        over = " x ".join(axis for axis in one.axes if layout.axes[axis] > 1)
        what = f"{one.kind} over {over}: {one.what}{' (waited for)' if one.exposed else ''}"
        table.add_row(what, f"{one.times} x {one.bytes / 2**20:,.1f} MiB", _seconds(seconds))
    if time is not None:
        table.add_row("reading and writing memory", "", _seconds(time.memory))
        table.add_row("[bold]step[/]", f"bound by {time.bound}", f"[bold]{_seconds(time.step)}[/]")
    console.print(table)
    show_speed(console, planned, planned.tokens_per_second, planned.mfu)


def show_speed(console: Console, planned: Plan, tokens_per_second: float | None, mfu: float | None) -> None:
    """Tokens of a step, and how many a second at most."""
    layout, many = planned.layout, "es" if planned.micro_batches > 1 else ""
    console.print(
        f"{planned.tokens:,} tokens a step, {planned.micro_batches} micro-batch{many} on each of {layout.feeders:,}; "
        f"{planned.model_flops / planned.tokens / 1e9:,.3f} GFLOP a token in documents of {layout.document:,} tokens",
        highlight=False,
    )
    if mfu is not None and tokens_per_second is not None:
        console.print(f"at most {tokens_per_second:,.0f} tokens/s, MFU {mfu:.1%}", highlight=False)
    elif planned.hardware is not None:
        console.print("no time: the catalog has peaks of bf16 only, and precision is fp32", highlight=False)


def show_batch(console: Console, job: schema.Job, planned: Plan) -> None:
    """Which batch it is for, where that is not simply the job's."""
    layout, asked = planned.layout, schema.batch_sizes(job)[planned.batch]
    if asked != planned.tokens:
        console.print(
            f"{planned.batch}={asked} cannot be shared by {layout.feeders} feeders with micro_batch={layout.rows}: "
            f"planned for {planned.batch}={planned.tokens}, or a multiple of it",
            highlight=False,
        )
    elif job.batch_ramp:
        console.print(f"planned for the largest batch, {planned.batch}={asked}", highlight=False)


def _show_answer(console: Console, job: schema.Job, planned: Plan, most: int | None, remedies: list[Remedy]) -> None:
    layout = planned.layout
    show_batch(console, job, planned)
    if layout.compiled and layout.remat != "selective":
        console.print(_COMPILED, highlight=False)
    if planned.hardware is None:
        console.print("hardware=... says whether it fits, and how long a step takes at least", highlight=False)
        return
    if layout.device == "xla":
        console.print("on TPUs XLA places memory itself; these figures are those of the same mesh under FSDP2")
    if planned.fits:
        console.print(f"[bold green]fits[/]; the largest micro_batch that does is {most}", highlight=False)
        return
    can = f"micro_batch={most} would be the largest" if most else "no micro_batch does"
    console.print(f"[bold red]does not fit[/]; with the rest as it is, {can}", highlight=False)
    show_remedies(console, remedies)


def show_remedies(console: Console, remedies: list[Remedy]) -> None:
    """Changes that make it fit, a line each."""
    for changes, other in remedies:
        keys = " ".join(f"{path}={value}" for path, value in changes.items())
        speed = f", at most {other.tokens_per_second:,.0f} tokens/s" if other.time else ""
        console.print(
            f"  {keys}: {_gib(other.memory.total)} GiB on {other.layout.processes:,} processes{speed}",
            highlight=False,
        )
    if not remedies:
        console.print("  no change of one or two keys makes it fit: use larger chips, or more of them", highlight=False)


def _gib(n: float) -> str:
    return f"{n / 2**30:,.2f}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.4f}"

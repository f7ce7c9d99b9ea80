"""A plan with the compiler's word, for people and for programs."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from rich.console import Console
from rich.table import Table

from conf import schema
from trainer.plan.remedy import Remedy
from trainer.plan.show import heading, show_batch, show_remedies, show_speed
from trainer.plan.tpu.compiled import CompiledPlan
from trainer.plan.tpu.traffic import BETWEEN

NAMED = 6  # buffers that are shown


def compiled_as_json(found: CompiledPlan) -> dict[str, Any]:
    """As plain values; bytes, seconds and operations are those of one chip and step unless they say so."""
    time, least = found.time, found.floor
    return dataclasses.asdict(found.compiled) | {
        "beside_bytes": found.beside,
        "hbm_bytes": found.hbm,
        "fits": found.fits,
        "received_bytes": found.compiled.received_bytes,
        "floor_bytes": dataclasses.asdict(least) | {"total": least.total},
        "ratio": found.ratio,
        "step_seconds": dataclasses.asdict(time) | {"step": time.step, "bound": time.bound} if time else None,
        "tokens_per_second": found.tokens_per_second,
        "mfu": found.mfu,
    }


def show_compiled(console: Console, job: schema.Job, found: CompiledPlan, remedies: list[Remedy]) -> None:
    """Print it: what lies in memory, what moves, what a step takes at least, and whether it fits."""
    console.print(heading(job, found.planned, "chips"), highlight=False)
    _show_memory(console, found)
    if found.laid_out:
        _show_traffic(console, found)
        _show_work(console, found)
    show_batch(console, job, found.planned)
    compiled = found.compiled
    by = f"libtpu {compiled.versions['libtpu']} for {compiled.topology}, chips: {compiled.chips:,}"
    if found.fits:
        console.print(f"[bold green]fits[/], says {by}, in {compiled.seconds:.1f} s", highlight=False)
        return
    console.print(f"[bold red]does not fit[/], says {by}, in {compiled.seconds:.1f} s", highlight=False)
    if compiled.refusal:
        console.print(compiled.refusal, highlight=False, markup=False)
    _show_buffers(console, found)
    console.print(
        "changes that make it fit, by formulas: estimates, to be planned again; plan.sweep=true compiles others",
        highlight=False,
    )
    show_remedies(console, remedies)


def _show_memory(console: Console, found: CompiledPlan) -> None:
    compiled, table = found.compiled, Table("memory of one chip", "GiB", "what")
    table.columns[1].justify = "right"
    if found.laid_out:
        taken = f"; {compiled.donated} results take their place" if compiled.donated else ""
        table.add_row("arguments", _gib(compiled.argument_bytes), f"weights, moments and the batch{taken}")
        if compiled.output_bytes:
            table.add_row("results", _gib(compiled.output_bytes), "with a place of their own")
        table.add_row("temporaries", _gib(compiled.temporary_bytes), "within the step")
    if found.beside:
        table.add_row("average", _gib(found.beside), "of the weights, beside the step")
    table.add_row("[bold]needed[/]", f"[bold]{_gib(found.hbm)}[/]", "" if found.laid_out else "or more")
    table.add_row("limit", _gib(compiled.limit_bytes), "that a program may take")
    console.print(table)


def _show_traffic(console: Console, found: CompiledPlan) -> None:
    compiled, least = found.compiled, found.floor
    table = Table("exchanges of one chip in a step", "times", "GB received")
    table.columns[1].justify = table.columns[2].justify = "right"
    for kind, one in compiled.traffic.items():
        table.add_row(kind, _count(one.executed), _gb(one.received_bytes))
    table.add_row("[bold]all[/]", "", f"[bold]{_gb(compiled.received_bytes)}[/]")
    parts = {
        "weights": "gathered twice, their gradients summed once",
        "replicas": "gradients summed over mesh.replica",
        "activations": "Megatron's all-reduces over mesh.tensor",
    }
    for name, note in parts.items():
        if count := getattr(least, name):
            table.add_row(f"least for {name}: {note}", "", _gb(count))
    if found.ratio is not None:
        table.add_row("[bold]all over the least[/]", "", f"[bold]{found.ratio:.2f}[/]")
    console.print(table)
    if compiled.received_bytes is None:
        console.print("how often some of the exchanges run cannot be told from the compiled text", highlight=False)


def _show_work(console: Console, found: CompiledPlan) -> None:
    time, planned = found.time, found.planned
    table = Table("work of one chip in a step", "amount", "seconds at least")
    table.columns[1].justify = table.columns[2].justify = "right"
    seconds = {} if time is None else dataclasses.asdict(time)
    table.add_row(
        "matrix products, by our own count",
        f"{planned.executed_flops / 1e12:,.2f} TFLOP",
        _seconds(seconds.get("compute")),
    )
    between = any(kind.endswith(BETWEEN) for kind in found.compiled.traffic)
    over = "links and network" if between else "links"
    table.add_row(
        f"exchanges over {over}", f"{_gb(found.compiled.received_bytes)} GB", _seconds(seconds.get("overlapped"))
    )
    table.add_row("reading and writing memory, estimated", "", _seconds(seconds.get("memory")))
    if time is not None:
        table.add_row(
            "[bold]step[/], were all of it at once", f"bound by {time.bound}", f"[bold]{_seconds(time.step)}[/]"
        )
    console.print(table)
    show_speed(console, planned, found.tokens_per_second, found.mfu)


def _show_buffers(console: Console, found: CompiledPlan) -> None:
    if not found.compiled.buffers:
        return
    table = Table("largest in memory", "GiB", "shape", "made by")
    table.columns[1].justify = "right"
    for buffer in found.compiled.buffers[:NAMED]:
        shared = f", and at other times {buffer.shared} more" if buffer.shared else ""
        # The program's parameters have no names.
        made = "weight, moment or row" if buffer.kind == "argument" else operation(buffer.source, buffer.name)
        table.add_row(buffer.kind, _gib(buffer.bytes), buffer.shape, f"{made}{shared}")
    console.print(table)


def operation(source: str, name: str) -> str:
    """The traced operation that made a buffer, or else the compiler's own, without numbers."""
    return re.sub(r"[.\d]+$", "", source.rpartition("/")[2] or name)


def _gib(n: int | None) -> str:
    return "not known" if n is None else f"{n / 2**30:,.2f}"


def _gb(n: int | None) -> str:
    return "not known" if n is None else f"{n / 1e9:,.3f}"


def _count(n: int | None) -> str:
    return "not known" if n is None else f"{n:,}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:,.4f}"

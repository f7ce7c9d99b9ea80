"""The job `plan`: what training would need, whether it fits, and what to change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conf import schema
from conf.compose import refuse
from conf.exits import DONE
from conf.hardware import Hardware, find
from trainer.model.config import num_parameters, tensor_problems
from trainer.model.sizes import build_config
from trainer.plan.flops import executed_flops, model_flops
from trainer.plan.layout import Layout
from trainer.plan.memory import Memory, peak
from trainer.plan.roofline import Time, exchange_time, step_time
from trainer.plan.traffic import Collective, collectives

SPARE = 0.1  # of the chip's memory: what the device adds of its own, and what the formulas may be wrong by
MOST_ROWS = 4096  # of a micro-batch
REMEDIES = 6  # shown at most


@dataclass(frozen=True)
class Plan:
    """A job with all that follows from it; `hardware`, and what needs it, may be None."""

    layout: Layout
    hardware: Hardware | None
    document: int
    micro_batches: int
    memory: Memory
    collectives: list[Collective]
    time: Time | None

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.micro_batches * self.layout.rows * self.layout.sequence_length * self.layout.feeders

    @property
    def model_flops(self) -> float:
        """Of a step, all processes together."""
        length = self.layout.sequence_length
        return self.tokens / length * model_flops(self.layout.config, length, self.document)

    @property
    def mfu(self) -> float | None:
        """Share of the peak at most."""
        if self.time is None or self.hardware is None:
            return None
        return self.model_flops / (self.time.step * self.hardware.chip.bf16_flops * self.layout.processes)

    @property
    def limit(self) -> float | None:
        """Bytes that tensors may take."""
        return None if self.hardware is None else (1 - SPARE) * self.hardware.chip.memory_bytes

    @property
    def fits(self) -> bool | None:
        """Whether they do."""
        return None if self.limit is None else self.memory.total <= self.limit


def plan(job: schema.Job) -> int:
    """Print the plan of a job, and write it where `plan.output` says. Raises ConfigError where nothing can be planned."""
    planned, console = plan_of(job), Console(width=None if Console().is_terminal else 120)
    most, remedies = largest_micro_batch(planned), []
    if planned.fits is False:
        remedies = list(fitting(job, planned))[:REMEDIES]
    _show(console, job, planned, most, remedies)
    if job.plan.output is not None:
        path = Path(job.plan.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(as_json(job, planned, most, remedies), indent=1) + "\n")
    return DONE


def plan_of(job: schema.Job) -> Plan:
    """All that follows from a job. Raises ConfigError."""
    hardware = None if job.hardware is None else find(job.hardware)
    processes, origin = processes_of(job, hardware)
    refuse(schema.check_mesh_size(job, processes, origin))
    config = build_config(job.model, job.tokenizer.vocab_size)
    axes = schema.axes(job, processes)
    refuse(tensor_problems(config, axes["tensor"]))
    device = hardware.chip.kind if hardware else "cuda" if job.backend.name == "cuda" else "cpu"
    layout = Layout.of(job, config, axes, device)
    micro_batches, rest = divmod(job.tokens_per_step, layout.rows * layout.sequence_length * layout.feeders)
    micro_batches = micro_batches if micro_batches and not rest else 1
    return Plan(
        layout=layout,
        hardware=hardware,
        document=min(document_tokens(job), layout.sequence_length),
        micro_batches=micro_batches,
        memory=peak(layout, micro_batches),
        collectives=collectives(layout, micro_batches),
        time=None if hardware is None else step_time(layout, hardware, micro_batches),
    )


def processes_of(job: schema.Job, hardware: Hardware | None) -> tuple[int, str]:
    """How many processes the job would have, and what says so."""
    if job.launch.processes is not None:
        return job.launch.processes, "launch.processes"
    fixed = schema.planned_processes(dataclasses.replace(job, backend=schema.Backend("cpu")))
    assert fixed is not None
    rest = any(getattr(job.mesh, axis) == -1 for axis in schema.AXES)
    if rest and hardware is not None and fixed < hardware.joined:
        return hardware.joined, f"the chips of hardware={hardware.name}"
    return fixed, "the product of the axes"


def document_tokens(job: schema.Job) -> int:
    """Tokens of a document: as the job says, or the mean of its shards where they are here, or a row."""
    if job.plan.document_tokens is not None:
        return job.plan.document_tokens
    manifest = Path(job.data.manifest)
    if not manifest.is_file():
        return job.data.sequence_length
    totals = json.loads(manifest.read_text())["totals"]
    return max(1, round(totals["tokens"] / max(1, totals["documents"])))


def largest_micro_batch(planned: Plan) -> int | None:
    """Rows of the largest micro-batch that fits; 0 where none does, None where there is no limit."""
    if planned.limit is None:
        return None
    fits, most = 0, MOST_ROWS
    while fits < most:
        rows = -(-(fits + most) // 2)
        if peak(planned.layout.with_rows(rows), planned.micro_batches).total <= planned.limit:
            fits = rows
        else:
            most = rows - 1
    return fits


def fitting(job: schema.Job, planned: Plan) -> Iterator[tuple[dict[str, Any], Plan]]:
    """Changes with which the job fits, the fastest for a token first; those of one key before those of two."""
    for keys in (1, 2):
        found = []
        for changes in _changes(job, planned):
            if len(changes) != keys:
                continue
            other = _changed(job, changes)
            if schema.check(other, "plan") or tensor_problems(planned.layout.config, other.mesh.tensor):
                continue
            candidate = plan_of(other)
            if candidate.fits:
                found.append((changes, candidate))
        yield from sorted(found, key=lambda one: one[1].time.step / one[1].tokens if one[1].time else 0)
        if found:
            return


def _changes(job: schema.Job, planned: Plan) -> Iterator[dict[str, Any]]:
    """What could make a job smaller: less at once, kept less of, or shared by more."""
    axes, order = planned.layout.axes, schema.CHOICES["remat"]
    meshes: list[dict[str, Any]] = []
    for factor in (2, 4, 8, 16):
        meshes.append({"mesh.fsdp": axes["fsdp"] * factor})
        for axis in ("tensor", "context"):
            if axes["fsdp"] % factor == 0:
                meshes.append({f"mesh.{axis}": axes[axis] * factor, "mesh.fsdp": axes["fsdp"] // factor})
        if axes["replica"] % factor == 0:
            meshes.append({"mesh.replica": axes["replica"] // factor, "mesh.fsdp": axes["fsdp"] * factor})
    policies = [{"remat": policy} for policy in order if policy not in ("none", job.remat)]
    rows = [{"micro_batch": n} for n in range(job.micro_batch - 1, 0, -1) if job.micro_batch % n == 0]
    yield from (*policies, *rows, *meshes)
    yield from (policy | other for policy in policies for other in (*rows, *meshes))


def _changed(job: schema.Job, changes: dict[str, Any]) -> schema.Job:
    mesh = {path.removeprefix("mesh."): value for path, value in changes.items() if path.startswith("mesh.")}
    keys = {path: value for path, value in changes.items() if not path.startswith("mesh.")}
    launch = dataclasses.replace(job.launch, processes=None)
    return dataclasses.replace(job, mesh=dataclasses.replace(job.mesh, **mesh), launch=launch, **keys)


def as_json(
    job: schema.Job, planned: Plan, most: int | None, remedies: list[tuple[dict[str, Any], Plan]]
) -> dict[str, Any]:
    """The plan as plain values; bytes, seconds and operations are those of one process and step unless they say so."""
    layout, time = planned.layout, planned.time
    return {
        "format": schema.FORMAT,
        "model": {"size": job.model.size, "parameters": num_parameters(layout.config)},
        "processes": layout.processes,
        "mesh": layout.axes,
        "hardware": job.hardware,
        "remat": layout.remat,
        "micro_batch": layout.rows,
        "micro_batches": planned.micro_batches,
        "tokens_per_step": planned.tokens,
        "document_tokens": planned.document,
        "memory_bytes": dataclasses.asdict(planned.memory) | {"total": planned.memory.total, "limit": planned.limit},
        "fits": planned.fits,
        "largest_micro_batch": most,
        "model_flops_per_token": planned.model_flops / planned.tokens,
        "executed_flops": planned.micro_batches * executed_flops(layout),
        "collectives": [dataclasses.asdict(one) for one in planned.collectives],
        "seconds": dataclasses.asdict(time) | {"step": time.step} if time else None,
        "mfu": planned.mfu,
        "remedies": [
            {"changes": changes, "memory_bytes": other.memory.total, "tokens_per_second": _speed(other)}
            for changes, other in remedies
        ],
    }


def _speed(planned: Plan) -> float | None:
    return None if planned.time is None else planned.tokens / planned.time.step


def _show(
    console: Console, job: schema.Job, planned: Plan, most: int | None, remedies: list[tuple[dict[str, Any], Plan]]
) -> None:
    layout, memory, hardware = planned.layout, planned.memory, planned.hardware
    mesh = " x ".join(f"{axis} {n}" for axis, n in layout.axes.items() if n > 1) or "one process"
    table = Table("of one process", "GiB", "", title=_title(job, planned, mesh), title_justify="left")
    table.columns[1].justify = "right"
    for name, note in _PARTS.items():
        table.add_row(name, _gib(getattr(memory, name)), note)
    table.add_row("[bold]peak[/]", f"[bold]{_gib(memory.total)}[/]", f"at: {memory.moment}")
    if hardware is not None and planned.limit is not None:
        table.add_row("limit", _gib(planned.limit), f"{hardware.chip.name}, {SPARE:.0%} left for what is not tensors")
    console.print(table)
    _show_work(console, planned)
    _show_answer(console, job, planned, most, remedies)


_PARTS = {
    "masters": "fp32 weights",
    "moments": "of the optimizer, fp32",
    "gradients": "fp32, of its shard",
    "gathered": "weights put together from all shards, with buffers",
    "reduced": "gradients on their way to be summed, with buffers",
    "kept": "activations for the backward pass",
    "working": "of the moment itself",
}


def _title(job: schema.Job, planned: Plan, mesh: str) -> str:
    layout = planned.layout
    chips = f" on {job.hardware}" if job.hardware else ""
    return (
        f"{job.model.size}, {num_parameters(layout.config):,} parameters: {layout.processes:,} processes ({mesh}){chips}, "
        f"micro_batch {layout.rows} x {layout.sequence_length}, remat {layout.remat}"
    )


def _show_work(console: Console, planned: Plan) -> None:
    layout, hardware, time = planned.layout, planned.hardware, planned.time
    rows = Table("of one process and step", "", "seconds at least", title_justify="left")
    rows.columns[1].justify = rows.columns[2].justify = "right"
    flops = planned.micro_batches * executed_flops(layout)
    rows.add_row("matrix products", f"{flops / 1e12:,.2f} TFLOP", _seconds(time.compute if time else None))
    for one in planned.collectives:
        seconds = None if hardware is None else exchange_time(one, layout, hardware)
        waits = ", waited for" if one.exposed else ""
        what = f"{one.kind} of {one.what} over {' x '.join(one.axes)}{waits}"
        rows.add_row(what, f"{one.times} x {one.bytes / 2**20:,.1f} MiB", _seconds(seconds))
    if time is not None:
        rows.add_row("reading and writing memory", "", _seconds(time.memory))
        rows.add_row("[bold]step[/]", f"bound by {time.bound}", f"[bold]{_seconds(time.step)}[/]")
    console.print(rows)
    per_token = planned.model_flops / planned.tokens
    console.print(
        f"model FLOPs: {per_token / 1e9:,.3f} G a token, of documents of {planned.document:,} tokens; "
        f"{planned.tokens:,} tokens a step in {planned.micro_batches} micro-batches",
        highlight=False,
    )
    if planned.mfu is not None:
        console.print(f"at most {_speed(planned):,.0f} tokens/s, MFU {planned.mfu:.1%}", highlight=False)


def _show_answer(
    console: Console, job: schema.Job, planned: Plan, most: int | None, remedies: list[tuple[dict[str, Any], Plan]]
) -> None:
    layout = planned.layout
    if job.tokens_per_step != planned.tokens:
        console.print(
            f"tokens_per_step={job.tokens_per_step} cannot be shared by {layout.feeders} feeders with micro_batch="
            f"{layout.rows}: planned for tokens_per_step={planned.tokens}, or a multiple of it",
            highlight=False,
        )
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
    for changes, other in remedies:
        keys = " ".join(f"{path}={value}" for path, value in changes.items())
        speed = f", at most {_speed(other):,.0f} tokens/s" if other.time else ""
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

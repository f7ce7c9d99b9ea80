"""What to change in a job that does not fit its chips, and how far one that fits can grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from conf import schema
from conf.check import check
from conf.hardware import find
from trainer.model.config import tensor_problems
from trainer.plan.memory import peak
from trainer.plan.planned import Plan, plan_of

MOST_ROWS = 4096  # of a micro-batch

Remedy = tuple[dict[str, Any], Plan]  # keys with their values, and the job with them


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


def fitting(job: schema.Job, planned: Plan, limit: float | None = None, off: float = 1.0) -> Iterator[Remedy]:
    """Changes with which the job fits, those that cost a chip's time least first; single ones before pairs.

    A candidate fits where `off` times what the formulas say of its memory is within the limit, or the plan's own.
    """
    limit = planned.limit if limit is None else limit
    for attempts in (_single(job, planned), _pairs(job, planned)):
        found = []
        for changes in attempts:
            other = _changed(job, planned, changes)
            if check(other, "plan") or tensor_problems(planned.layout.config, other.mesh.tensor):
                continue
            candidate = plan_of(other)
            if limit is not None and off * candidate.memory.total <= limit:
                found.append((changes, candidate))
        yield from sorted(found, key=lambda remedy: _cost(remedy[1]))
        if found:
            return


def _cost(planned: Plan) -> float:
    """Chip-seconds of a token."""
    return planned.layout.processes / planned.tokens_per_second if planned.tokens_per_second else 0.0


def _single(job: schema.Job, planned: Plan) -> list[dict[str, Any]]:
    """Less kept, less at once, or more processes to share it."""
    return [*_policies(job), *_fewer_rows(job), *_meshes(planned)]


def _pairs(job: schema.Job, planned: Plan) -> list[dict[str, Any]]:
    """Less kept, and one of the others."""
    return [policy | other for policy in _policies(job) for other in (*_fewer_rows(job), *_meshes(planned))]


def _policies(job: schema.Job) -> list[dict[str, Any]]:
    return [{"remat": policy} for policy in schema.CHOICES["remat"] if policy not in ("none", job.remat)]


def _fewer_rows(job: schema.Job) -> list[dict[str, Any]]:
    """Those that still divide a process's rows."""
    return [{"micro_batch": n} for n in range(job.micro_batch - 1, 0, -1) if job.micro_batch % n == 0]


def _meshes(planned: Plan) -> list[dict[str, Any]]:
    """More processes, or the same ones sharing more than they do."""
    axes, meshes = planned.layout.axes, []
    for factor in (2, 4, 8, 16):
        meshes += _larger(planned, factor)
        for axis in ("tensor", "context"):
            if axes["fsdp"] % factor == 0:
                meshes.append({f"mesh.{axis}": axes[axis] * factor, "mesh.fsdp": axes["fsdp"] // factor})
        if axes["replica"] % factor == 0:
            meshes.append({"mesh.replica": axes["replica"] // factor, "mesh.fsdp": axes["fsdp"] * factor})
    return meshes


def _larger(planned: Plan, factor: int) -> list[dict[str, Any]]:
    """So many times the processes; of TPUs a larger slice, where there is one."""
    change: dict[str, Any] = {"mesh.fsdp": planned.layout.axes["fsdp"] * factor}
    if planned.hardware is None or planned.hardware.chip.kind != "xla":
        return [change]
    generation, _, number = planned.hardware.name.partition("-")
    larger = f"{generation}-{int(number) * factor}"
    return [] if find(larger) is None else [{"hardware": larger, **change}]


def _changed(job: schema.Job, planned: Plan, changes: dict[str, Any]) -> schema.Job:
    axes = {path.removeprefix("mesh."): value for path, value in changes.items() if path.startswith("mesh.")}
    others = {path: value for path, value in changes.items() if not path.startswith("mesh.")}
    mesh = dataclasses.replace(job.mesh, **(planned.layout.axes | axes))
    same: dict[str, Any] = {
        "launch": dataclasses.replace(job.launch, processes=None),
        "plan": dataclasses.replace(job.plan, document_tokens=planned.layout.document),  # shards are read once
    }
    return dataclasses.replace(job, mesh=mesh, **same, **others)

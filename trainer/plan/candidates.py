"""The jobs that a sweep chooses from: meshes, policies of recomputation, and the rows that each can take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from conf import schema
from conf.check import check, check_rows
from trainer.model.config import tensor_problems
from trainer.plan.planned import Plan, plan_of
from trainer.plan.remedy import MOST_ROWS
from trainer.plan.tpu.compiled import CompiledPlan

MOST_TENSOR = 16  # chips that share a layer's heads


@dataclass(frozen=True)
class Candidate:
    """A job that was tried.

    changes   keys with the values that make the job this one
    compiled  what the compiler said of it; None where formulas had the word, or it failed
    failed    what the compiler said instead; empty where it did not fail
    """

    changes: dict[str, Any]
    planned: Plan
    compiled: CompiledPlan | None = None
    failed: str = ""

    @property
    def fits(self) -> bool:
        """In a chip's memory."""
        if self.failed:
            return False
        return self.compiled.fits if self.compiled else bool(self.planned.fits)

    @property
    def memory(self) -> int | None:
        """Bytes of a chip's; None where nobody told."""
        if self.failed:
            return None
        return self.compiled.hbm if self.compiled else self.planned.memory.total

    @property
    def step(self) -> float | None:
        """Seconds at least."""
        time = self.compiled.time if self.compiled else self.planned.time
        return None if time is None or self.failed else time.step

    @property
    def tokens_per_second(self) -> float:
        """At most; 0 where no time is known."""
        return self.planned.tokens / self.step if self.step else 0.0

    @property
    def mfu(self) -> float | None:
        """At most."""
        if self.failed:
            return None
        return self.compiled.mfu if self.compiled else self.planned.mfu

    @property
    def rank(self) -> tuple[float, float]:
        """The more the better: tokens/s, and among equals those with less to do were nothing done at once."""
        time = self.compiled.time if self.compiled else self.planned.time
        if time is None or self.failed:
            return 0.0, 0.0
        serial = sum(dataclasses.astuple(time)) / self.planned.tokens
        return float(f"{self.tokens_per_second:.3g}"), -serial


@dataclass
class Way:
    """A mesh and a policy; `tried` by rows of a micro-batch."""

    job: schema.Job
    changes: dict[str, Any]
    axes: dict[str, int]
    keeps_batch: bool
    tried: dict[int, Candidate] = dataclasses.field(default_factory=dict)
    closed: bool = False

    def at(self, rows: int) -> tuple[dict[str, Any], schema.Job] | None:
        """The job with so many rows, and its changes; None where it cannot be."""
        changes = {**self.changes, "micro_batch": rows}
        job = dataclasses.replace(self.job, micro_batch=rows)
        if not self.keeps_batch:
            feeders = self.axes["replica"] * self.axes["fsdp"]
            changes["tokens_per_step"] = rows * job.data.sequence_length * feeders
            if job.batch_ramp:
                changes["batch_ramp"] = []
            job = dataclasses.replace(job, tokens_per_step=changes["tokens_per_step"], batch_ramp=[])
        return None if check_rows(job, math.prod(self.axes.values())) else (changes, job)

    def from_rows(self, rows: int, step: int = 1) -> int | None:
        """The first of such rows, upwards or downwards, with which it can be."""
        while 0 < rows <= MOST_ROWS:
            if self.at(rows) is not None:
                return rows
            rows += step
        return None

    @property
    def fitting(self) -> list[Candidate]:
        """Those that do."""
        return [one for one in self.tried.values() if one.fits]


def ways(job: schema.Job, planned: Plan) -> tuple[list[Way], bool]:
    """Meshes with policies, and whether the job's batch is kept: it is where the job's own mesh can share it."""
    once = dataclasses.replace(job, micro_batch=1)
    keeps = not check_rows(once, planned.layout.processes)
    policies = ("selective", "block") if planned.layout.device == "xla" else ("none", "selective", "block")
    found = []
    for axes in _meshes(planned):
        for policy in policies:
            other = dataclasses.replace(
                job,
                remat=policy,
                mesh=schema.Mesh(**axes, reduce_dtype=job.mesh.reduce_dtype),
                launch=dataclasses.replace(job.launch, processes=None),
                plan=dataclasses.replace(job.plan, document_tokens=planned.layout.document),  # shards are read once
            )
            if check(other, "plan") or tensor_problems(planned.layout.config, axes["tensor"]):
                continue
            named = [axis for axis in axes if axis == "fsdp" or {axes[axis], getattr(job.mesh, axis)} != {1}]
            changes = {f"mesh.{axis}": axes[axis] for axis in named}
            found.append(Way(other, {**changes, "remat": policy}, axes, keeps))
    return found, keeps


def _meshes(planned: Plan) -> Iterator[dict[str, int]]:
    """The job's own, and those of fsdp x tensor; slices of TPUs are replicas of each other."""
    own, hardware = planned.layout.axes, planned.hardware
    assert hardware is not None
    replicas = max(1, planned.layout.processes // hardware.joined) if hardware.chip.kind == "xla" else 1
    shared = planned.layout.processes // replicas // own["context"]
    yield own
    for tensor in range(1, MOST_TENSOR + 1):
        if planned.layout.config.num_heads % tensor == 0 and shared % tensor == 0:
            axes = {"replica": replicas, "fsdp": shared // tensor, "context": own["context"], "tensor": tensor}
            if axes != own:
                yield axes


def by_formulas(changes: dict[str, Any], job: schema.Job) -> Candidate:
    """What formulas say of it."""
    return Candidate(changes, plan_of(job))

"""A job with all that follows from it for memory, operations, traffic and time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from conf import schema
from conf.check import check, check_mesh_size
from conf.exits import ConfigError
from conf.hardware import Hardware, find
from trainer.model.config import tensor_problems
from trainer.model.sizes import build_config
from trainer.plan.flops import executed_flops, model_flops
from trainer.plan.layout import Layout
from trainer.plan.memory import Memory, peak
from trainer.plan.roofline import Time, step_time
from trainer.plan.traffic import Collective, collectives
from trainer.plan.update import update_flops

SPARE = 0.1  # of the chip's memory: what the device adds of its own, and what the formulas may be wrong by


@dataclass(frozen=True)
class Plan:
    """A job with all that follows from it; `hardware`, and what needs it, may be None.

    `batch` is the key of the batch size that it is for: the largest of the job's.
    """

    layout: Layout
    hardware: Hardware | None
    batch: str
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
        return self.tokens / length * model_flops(self.layout.config, length, self.layout.document)

    @property
    def executed_flops(self) -> int:
        """Of a step, one process."""
        return self.micro_batches * executed_flops(self.layout) + update_flops(self.layout)

    @property
    def tokens_per_second(self) -> float | None:
        """At most, all processes together."""
        return None if self.time is None else self.tokens / self.time.step

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


def on_hardware(job: schema.Job) -> schema.Job:
    """The job with the backend that its hardware asks for. Raises ConfigError where it does not run there."""
    hardware = None if job.hardware is None else find(job.hardware)
    if hardware is None or hardware.chip.kind != "xla" or job.backend.name != "auto":
        return job
    job = dataclasses.replace(job, backend=dataclasses.replace(job.backend, name="xla"))
    if problems := check(job, "plan"):
        raise ConfigError(f"hardware={hardware.name} means backend=xla: " + "; ".join(problems))
    return job


def plan_of(job: schema.Job) -> Plan:
    """All that follows from a job. Raises ConfigError, or DataError where its shards are here and broken."""
    if job.optim.offload:
        raise ConfigError(
            "optim.offload=true cannot be planned: plan without it, and take masters, moments and gradients off"
        )
    hardware = None if job.hardware is None else find(job.hardware)
    processes, origin = processes_of(job, hardware)
    if problems := check_mesh_size(job, processes, origin):
        raise ConfigError("; ".join(problems))
    config = build_config(job.model, job.tokenizer.vocab_size)
    axes = schema.axes(job, processes)
    if problems := tensor_problems(config, axes["tensor"]):
        raise ConfigError("; ".join(problems))
    device = hardware.chip.kind if hardware else "cuda" if job.backend.name == "cuda" else "cpu"
    layout = Layout.of(job, config, axes, device, document_tokens(job))
    sizes = schema.batch_sizes(job)
    batch = max(sizes, key=lambda path: sizes[path])  # a smaller one needs no more memory
    micro_batches, rest = divmod(sizes[batch], layout.rows * layout.sequence_length * layout.feeders)
    micro_batches = micro_batches if micro_batches and not rest else 1
    return Plan(
        layout=layout,
        hardware=hardware,
        batch=batch,
        micro_batches=micro_batches,
        memory=peak(layout, micro_batches),
        collectives=collectives(layout, micro_batches),
        # The catalog knows no peak of fp32.
        time=step_time(layout, hardware, micro_batches) if hardware and job.precision == "bf16" else None,
    )


def processes_of(job: schema.Job, hardware: Hardware | None) -> tuple[int, str]:
    """How many processes the job would have, and what says so."""
    if job.launch.processes is not None:
        return job.launch.processes * job.launch.nodes, "launch.processes"
    fixed = schema.planned_processes(dataclasses.replace(job, backend=schema.Backend("cpu")))
    assert fixed is not None
    rest = any(getattr(job.mesh, axis) == -1 for axis in schema.AXES)
    if rest and hardware is not None and fixed < hardware.joined:
        return hardware.joined, f"the chips of hardware={hardware.name}"
    return fixed, "the product of the axes"


def document_tokens(job: schema.Job) -> int:
    """Tokens of a document: as the job says, or the mean of its shards where they are here, or a row.

    Raises DataError where the shards are broken.
    """
    if job.plan.document_tokens is not None:
        return job.plan.document_tokens
    if not Path(job.data.manifest).is_file():
        return job.data.sequence_length
    from data_pipeline.reader import Shards  # a third of a second, most of it pyarrow's

    shards = Shards.open(job.data.manifest)
    return max(1, round(shards.tokens / max(1, shards.documents)))

"""A plan with what the TPU compiler made of the step: memory, traffic beside the least, and the time that follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from conf import schema
from trainer.plan.layout import MASTER
from trainer.plan.planned import Plan
from trainer.plan.roofline import Time
from trainer.plan.tpu.compiler import Compiled
from trainer.plan.tpu.floor import Floor, floor
from trainer.plan.tpu.step import Compiler, Step, missing, step_of
from trainer.plan.tpu.traffic import BETWEEN

UNCOMPILED = (
    "not compiled: that needs the environment that `make setup-tpu` makes, and .venv-tpu/bin/gemcutter plan there; "
    "the figures above are formulas"
)


@dataclass(frozen=True)
class CompiledPlan:
    """A job, and its step as the compiler lays it out on one chip."""

    planned: Plan
    compiled: Compiled

    @property
    def beside(self) -> int:
        """Bytes of a chip's memory that the step does not touch: an average of the weights."""
        return MASTER * self.planned.layout.held_numbers() if self.planned.layout.average else 0

    @property
    def hbm(self) -> int | None:
        """Bytes of a chip's memory, all told; None where the compiler refused without a figure."""
        return None if self.compiled.hbm_bytes is None else self.compiled.hbm_bytes + self.beside

    @property
    def fits(self) -> bool:
        """Whether that is within what a program may take."""
        return self.compiled.fits and self.hbm is not None and self.hbm <= self.compiled.limit_bytes

    @property
    def laid_out(self) -> bool:
        """Whether the compiler came so far that exchanges and buffers are known."""
        return self.compiled.argument_bytes is not None

    @property
    def floor(self) -> Floor:
        """The least that a chip receives."""
        return floor(self.planned.layout, self.planned.micro_batches)

    @property
    def ratio(self) -> float | None:
        """What it receives over that; None where one of both is not known, or nothing has to be received."""
        received, least = self.compiled.received_bytes, self.floor.total
        return received / least if received is not None and least and self.laid_out else None

    @property
    def time(self) -> Time | None:
        """The least time of a step, were all exchanges to run beside the products; None where the catalog has no peak.

        Exchanges whose number the compiled text does not tell are left out, so that it stays a lower bound.
        """
        hardware, estimated = self.planned.hardware, self.planned.time
        if hardware is None or estimated is None or not self.laid_out:
            return None
        received = {kind: one.received_bytes or 0 for kind, one in self.compiled.traffic.items()}
        network = sum(count for kind, count in received.items() if kind.endswith(BETWEEN))
        links = sum(received.values()) - network
        return Time(
            compute=estimated.compute,
            memory=estimated.memory,
            overlapped=max(links / hardware.chip.link_bandwidth, network * hardware.joined / hardware.network),
            exposed=0.0,
        )

    @property
    def tokens_per_second(self) -> float | None:
        """At most, all chips together."""
        return None if self.time is None else self.planned.tokens / self.time.step

    @property
    def mfu(self) -> float | None:
        """Share of the peak at most."""
        return None if self.time is None else self._timed.mfu

    @property
    def _timed(self) -> Plan:
        return dataclasses.replace(self.planned, time=self.time)


def compiles(job: schema.Job, planned: Plan) -> bool:
    """Whether the compiler is asked, as hardware and keys go.

    Raises ConfigError where the packages for it are of other versions than those that go together.
    """
    return wants_compiler(job, planned) and not missing()


def wants_compiler(job: schema.Job, planned: Plan) -> bool:
    """Whether it would be, had this environment the packages."""
    tpu = planned.hardware is not None and planned.hardware.chip.kind == "xla"
    return tpu and job.backend.name == "xla" and job.plan.compile


def planned_step(job: schema.Job, planned: Plan) -> Step:
    """What is traced for a plan on a TPU slice. Raises ConfigError where its mesh is none of whole slices."""
    assert planned.hardware is not None
    return step_of(job, planned.layout.config, planned.layout.axes, planned.hardware, planned.micro_batches)


def compiled_plan(compiler: Compiler, job: schema.Job, planned: Plan) -> CompiledPlan:
    """The compiler's word on a plan.

    Raises ConfigError where the step cannot run on such chips, CompilerFailed where the compiler fails.
    """
    return CompiledPlan(planned, compiler.compile(planned_step(job, planned)))

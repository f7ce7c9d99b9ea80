"""The least time of a step on an entry of the hardware catalog, were every part to run at the rate of its data sheet.

Matrix products, memory and the exchanges that run beside them overlap, and the slowest counts; what computation waits
for is added. No kernel reaches the peak, so a run is slower; which part bounds it, and which of two plans is faster,
is what this tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from conf.hardware import Hardware
from conf.schema import AXES
from trainer.model.config import Kind
from trainer.plan.flops import executed_flops
from trainer.plan.layout import Layout
from trainer.plan.memory import KEPT
from trainer.plan.traffic import Collective, collectives, size
from trainer.plan.update import update_bytes, update_flops

INNER = {  # axes whose processes lie between two neighbours of a group
    ("replica",): ("fsdp", "context", "tensor"),
    ("fsdp", "context"): ("tensor",),
    ("fsdp", "context", "tensor"): (),
    ("context",): ("tensor",),
    ("tensor",): (),
    AXES: (),
}


@dataclass(frozen=True)
class Time:
    """Seconds of a step.

    compute     of matrix products
    memory      of reading and writing high-bandwidth memory
    overlapped  of exchanges beside them
    exposed     of exchanges that computation waits for
    """

    compute: float
    memory: float
    overlapped: float
    exposed: float

    @property
    def step(self) -> float:
        """Of the whole."""
        return max(self.compute, self.memory, self.overlapped) + self.exposed

    @property
    def bound(self) -> str:
        """What takes longest."""
        names = ("compute", "memory", "overlapped", "exposed")
        longest = max(names, key=lambda name: float(getattr(self, name)))
        return {"overlapped": "communication", "exposed": "communication that computation waits for"}.get(
            longest, longest
        )


def step_time(at: Layout, hardware: Hardware, micro_batches: int = 1) -> Time:
    """The roofline of a step of so many micro-batches."""
    chip, exchanged = hardware.chip, collectives(at, micro_batches)
    times = {one: exchange_time(one, at, hardware) for one in exchanged}
    return Time(
        compute=(micro_batches * executed_flops(at) + update_flops(at)) / chip.bf16_flops,
        memory=(micro_batches * _memory_bytes(at) + update_bytes(at)) / chip.memory_bandwidth,
        overlapped=sum(seconds for one, seconds in times.items() if not one.exposed),
        exposed=sum(seconds for one, seconds in times.items() if one.exposed),
    )


def exchange_time(one: Collective, at: Layout, hardware: Hardware) -> float:
    """Seconds of a collective in a step, by rings: over the fast links, and where they end over the network.

    Each group of joined chips takes in what it lacks once, and shares the network with groups that do the same; of an
    all-to-all each chip takes in something else.
    """
    members, inner = size(at, one.axes), size(at, INNER[one.axes])
    together = max(1, min(members, hardware.joined // inner))  # members that fast links join
    beside = hardware.joined // together  # groups at work on the same network
    links = one.bytes * (members - 1) / members / hardware.chip.link_bandwidth if together > 1 else 0.0
    different = together if one.kind == "all-to-all" else 1
    network = beside * different * one.bytes * (1 - together / members) / hardware.network
    return one.times * max(links, network) * (2 if one.kind == "all-reduce" else 1)


def _memory_bytes(at: Layout) -> int:
    """Bytes that a micro-batch moves at least: weights read in three products, what is kept written and read."""
    kinds: tuple[Kind, ...] = at.config.layer_kinds
    weights = 3 * at.compute * (len(kinds) * at.block_numbers() + at.root_numbers())
    return weights + 2 * sum(KEPT["none"](at, kind) for kind in kinds)

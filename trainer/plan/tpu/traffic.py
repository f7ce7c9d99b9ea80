"""The exchanges between chips that a compiled program holds, and what one chip receives by them in a run of it.

Bytes are those of the numbers, without padding. A chip of a group of n receives by rings: of an all-gather (n - 1)
times what it puts in, of a reduce-scatter or an all-to-all (n - 1)/n of it, of an all-reduce twice that, of the others
as much as it puts in. Exchanges between slices are sends to the runtime of their hosts, with the slices as members.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from trainer.plan.tpu.hlo import Instruction, Module, byte_count
from trainer.plan.tpu.loops import Frame, trips, within

RECEIVED: dict[str, Callable[[int], Fraction]] = {  # by a chip for each byte that it puts in
    "all-gather": lambda n: Fraction(n - 1),
    "reduce-scatter": lambda n: Fraction(n - 1, n),
    "all-reduce": lambda n: Fraction(2 * (n - 1), n),
    "all-to-all": lambda n: Fraction(n - 1, n),
    "ragged-all-to-all": lambda n: Fraction(n - 1, n),
    "collective-permute": lambda n: Fraction(1),
    "collective-broadcast": lambda n: Fraction(1),
}
BETWEEN = " between slices"  # behind the kind of an exchange over the network that joins slices
_LOOKED_THROUGH = ("bitcast", "reshape", "copy", "convert", "get-tuple-element", "all-reduce-done")


@dataclass(frozen=True)
class Exchange:
    """One collective of a program.

    kind            all-gather, reduce-scatter, all-reduce, all-to-all, collective-permute, ..., also BETWEEN slices
    times           that it is carried out in a run; None within a loop whose trips cannot be told
    operand_bytes   that a chip puts in each time
    received_bytes  that a chip receives each time
    group           chips, or slices, that exchange with each other; 0 where each receives from one
    shapes          of what is put in
    source          operation of the traced program; empty where the compiler made it
    where           computation that it stands in
    """

    kind: str
    times: int | None
    operand_bytes: int
    received_bytes: int
    group: int
    shapes: str
    source: str
    where: str


@dataclass(frozen=True)
class Traffic:
    """The exchanges of one kind: in the text, and in a run of the program.

    Where the trips of a loop around one cannot be told, all but `static` is None: nothing is counted as if it ran once.
    """

    static: int
    executed: int | None
    operand_bytes: int | None
    received_bytes: int | None


def exchanges(module: Module) -> list[Exchange]:
    """All collectives that the program reaches.

    Of a conditional all branches count, as if each were taken. A collective that a chain of fusions starts, carries on
    and ends stands in each of them under one channel, at times inside a loop that runs meanwhile: its starts count.
    """
    found = list(_within(Frame(module, module.entry, lambda index: None), module.entry, 1))
    started = {one.chain for one in found if one.starts}
    cut = {one.chain for one in found if one.chain and one.exchange.kind == "reduce-scatter"}
    seen: set[tuple[str, str]] = set()
    kept = []
    for one in found:
        if one.chain is not None:
            repeated = not one.starts if one.chain in started else (one.chain, one.around) in seen
            seen.add((one.chain, one.around))
            if repeated:
                continue
        exchange = one.exchange
        if one.chain in cut and exchange.kind == "all-reduce":
            exchange = dataclasses.replace(
                exchange,
                kind="reduce-scatter",
                received_bytes=_received("reduce-scatter", exchange.operand_bytes, exchange.group),
            )
        kept.append(exchange)
    return kept


def by_kind(found: list[Exchange]) -> dict[str, Traffic]:
    """Their sums, by name of the kind."""
    return {kind: _sum([one for one in found if one.kind == kind]) for kind in sorted({one.kind for one in found})}


def largest(found: list[Exchange], most: int) -> list[Exchange]:
    """Those by which most is received, in a run; those that run nobody knows how often come first."""
    return sorted(found, key=lambda one: -float("inf") if one.times is None else -one.times * one.received_bytes)[:most]


def _sum(found: list[Exchange]) -> Traffic:
    known = [(one, one.times) for one in found if one.times is not None]
    if len(known) < len(found):
        return Traffic(len(found), None, None, None)
    return Traffic(
        static=len(found),
        executed=sum(times for _, times in known),
        operand_bytes=sum(times * one.operand_bytes for one, times in known),
        received_bytes=sum(times * one.received_bytes for one, times in known),
    )


@dataclass(frozen=True)
class _Found:
    """A collective in the text.

    chain   of which it is a part, where it stands in a fusion
    starts  whether it is the first part
    around  computation that holds the fusion
    """

    exchange: Exchange
    chain: str | None = None
    starts: bool = False
    around: str = ""


def _within(frame: Frame, computation: str, times: int | None) -> Iterator[_Found]:
    """Those of a computation that the program runs so often, and of all that it calls."""
    for one in frame.instructions.values():
        if _kind(one) is not None:
            yield _Found(_exchange(frame.module, computation, one, times, fused=False))
        elif one.opcode == "while":
            yield from _of_loop(frame, one, times)
        elif one.opcode == "conditional":
            for branch in one.branches():
                yield from _within(_of_unknowns(frame, branch), branch, times)
        elif one.opcode == "fusion" and (called := one.called("calls")):
            yield from _of_fusion(frame.module, called, times, computation)
        elif one.opcode in ("call", "async-start") and (called := one.called("calls") or one.called("to_apply")):
            yield from _within(frame.called(called, one.operands), called, times)


def _of_loop(frame: Frame, loop: Instruction, times: int | None) -> Iterator[_Found]:
    body, condition = loop.called("body"), loop.called("condition")
    if body is None or condition is None:
        raise ValueError(f"the loop {loop.name} names no body or no condition")
    if not any(True for name in (body, condition) for _ in _within(_of_unknowns(frame, name), name, None)):
        return  # trips of loops without an exchange do not matter
    trip = trips(frame, loop)
    often = None if times is None or trip is None else times * trip
    yield from _within(within(frame, loop, body), body, often)
    once_more = None if often is None or times is None else often + times
    yield from _within(_of_unknowns(frame, condition), condition, once_more)


def _of_unknowns(frame: Frame, computation: str) -> Frame:
    """Another computation of the program, of whose arguments nothing is known."""
    return Frame(frame.module, computation, lambda index: None)


def _of_fusion(module: Module, called: str, times: int | None, around: str) -> Iterator[_Found]:
    instructions = module.computations[called]
    for one in instructions.values():
        if (kind := _kind(one)) is not None:
            link = re.search(r'chain_id="([^"]*)"', one.attributes)
            channel = one.number("channel_id")
            chain = None if channel is None else f"{kind} {channel} {link[1] if link else ''}"
            starts = any(
                'custom_call_target="AsyncCollectiveStart"' in other.attributes
                for other in instructions.values()
                if one.name in other.operands
            )
            yield _Found(_exchange(module, called, one, times, fused=True), chain, starts, around)
        elif one.opcode == "fusion" and (deeper := one.called("calls")):
            yield from _of_fusion(module, deeper, times, around)


def _kind(one: Instruction) -> str | None:
    """Of a collective, or of the start of an asynchronous one; None of other instructions."""
    if one.opcode == "send":
        found = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
        named = found[1].lower().replace("_", "-") if found else ""
        # What goes to a host otherwise is no exchange.
        return ("collective-permute" if named == "one-to-one" else named) + BETWEEN if named else None
    kind = one.opcode.removesuffix("-start")
    return kind if kind in RECEIVED else None


def _exchange(module: Module, computation: str, one: Instruction, times: int | None, *, fused: bool) -> Exchange:
    kind = _kind(one)
    assert kind is not None
    instructions = module.computations[computation]
    operands = one.operands[:1] if one.opcode == "send" else one.operands  # the other one is a token
    shapes = [instructions[name].type for name in operands]
    if kind == "all-reduce" and fused and _is_cut(instructions, one):
        kind = "reduce-scatter"
    group = 0 if kind.startswith("collective-permute") else _slices(one) if BETWEEN in kind else _group(module, one)
    put_in = sum(byte_count(shape) for shape in shapes)
    return Exchange(
        kind=kind,
        times=times,
        operand_bytes=put_in,
        received_bytes=_received(kind, put_in, group),
        group=group,
        shapes=" ".join(re.sub(r"\{[^}]*\}", "", shape) for shape in shapes),
        source=one.source,
        where=computation,
    )


def _received(kind: str, put_in: int, group: int) -> int:
    if (share := RECEIVED.get(kind.removesuffix(BETWEEN))) is None:
        raise ValueError(f"an exchange of the kind {kind} is not known")
    return round(put_in * share(group))


def _is_cut(instructions: dict[str, Instruction], reduced: Instruction) -> bool:
    """Whether all that a fusion takes of a sum is this chip's part: the compiler's form of a reduce-scatter."""
    users = [one for one in instructions.values() if reduced.name in one.operands]
    return bool(users) and all(
        one.opcode == "dynamic-slice" or (one.opcode in _LOOKED_THROUGH and _is_cut(instructions, one)) for one in users
    )


def _slices(one: Instruction) -> int:
    """Slices that exchange: `{1,2}x{0:15}` names two, and 16 chips of each."""
    found = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x', one.attributes)
    if found is None:
        raise ValueError(f"the slices of {one.name} cannot be read: {one.attributes[:200]}")
    slices = 0
    for part in found[1].split(","):
        first, _, last = part.partition(":")
        slices += int(last or first) - int(first) + 1
    return slices


def _group(module: Module, one: Instruction) -> int:
    """Chips of a group; all of the program where no groups are named. Raises ValueError where they cannot be read."""
    found = re.search(r"\breplica_groups=(.*)", one.attributes)
    groups = found[1] if found else "{}"
    if listed := re.match(r"\{\{([\d, ]+)\}", groups):
        return listed[1].count(",") + 1
    if counted := re.match(r"\[(\d+),(\d+)\]<=", groups):
        return int(counted[2])
    if mesh := re.match(r"mesh\[([^\]]*)\] ?\{([^}]*)\}", groups):
        axes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", mesh[1])}
        group = 1
        for axis in mesh[2].split(","):
            part = re.fullmatch(r"\s*'?([\w.]+)'?(?::\(\d+\)(\d+))?\s*", axis)
            if part is None:
                break
            group *= int(part[2]) if part[2] else axes[part[1]]
        else:
            return group
    if re.match(r"\{\}", groups):
        return module.devices
    raise ValueError(f"the groups of {one.name} cannot be read: {groups[:80]}")

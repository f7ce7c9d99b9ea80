"""What a compiled program needs of a chip's high-bandwidth memory, from the compiler's assignment of buffers to it.

The compiler dumps one `*-buffer-assignment.txt` for a program: allocations with their size in bytes, and the values
that lie in them at one time or another. Allocations with a color lie in other memories of the chip. The report
beside it (`*-memory-usage-report.txt`) holds the same, rounded and without the smaller ones. Standard library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ALLOCATION = re.compile(r"allocation (\d+): size (\d+)(.*):$")
_VALUE = re.compile(r" value: <\d+ (\S+).* @(\d+)> \(size=(\d+),offset=(\d+)\): (.+)")
_LAYOUT = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True)
class Buffer:
    """Some bytes of a chip's memory.

    kind    argument, output, constant or temporary
    shape   of the value in it; of the largest where several lie there one after the other
    name    of the instruction that makes that value
    shared  further values that lie there at other times
    source  operation of the traced program that it comes from; empty where that is not known
    """

    bytes: int
    kind: str
    shape: str
    name: str
    shared: int
    source: str = ""


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip, of arguments with the `donated` outputs that take the place of one, and of other outputs."""

    arguments: int
    outputs: int
    constants: int
    temporaries: int
    donated: int
    buffers: tuple[Buffer, ...]

    @property
    def total(self) -> int:
        """All that lies in the memory when the program runs."""
        return self.arguments + self.outputs + self.constants + self.temporaries

    def largest(self, most: int) -> list[Buffer]:
        """The largest buffers."""
        return sorted(self.buffers, key=lambda one: -one.bytes)[:most]


def read_memory(text: str) -> Memory:
    """Of the dump of an assignment. Raises ValueError where it is not whole: its sizes must add up to what it says."""
    sizes = dict.fromkeys(("argument", "output", "constant", "temporary"), 0)
    buffers: list[Buffer] = []
    everywhere, donated, kind = 0, 0, None
    held: dict[tuple[int, int], list[tuple[str, str]]] = {}  # offset and size: names and shapes
    for line in text.splitlines():
        if found := _ALLOCATION.match(line):
            buffers += _buffers(kind, held)
            kind, held = _kind(found[3]), {}
            everywhere += int(found[2])
            donated += ", parameter " in found[3] and ", maybe-live-out" in found[3]
            if kind is not None:
                sizes[kind] += int(found[2])
        elif (found := _VALUE.match(line)) and not found[5].startswith(
            "("
        ):  # of a tuple a table of addresses lies there
            held.setdefault((int(found[4]), int(found[3])), []).append((found[1], found[5]))
        elif found := re.match(r"Total bytes used: (\d+)", line):
            if int(found[1]) != everywhere:
                raise ValueError(f"allocations of {everywhere:,} bytes in a report of {int(found[1]):,}")
            buffers += _buffers(kind, held)
            return Memory(
                sizes["argument"], sizes["output"], sizes["constant"], sizes["temporary"], donated, tuple(buffers)
            )
    raise ValueError("the assignment of buffers ends before its total")


def _kind(described: str) -> str | None:
    """What an allocation is for; None in another memory than the large one."""
    color = re.search(r", color (\d+)", described)
    if (color and color[1] != "0") or ", thread-local" in described:
        return None
    if ", parameter " in described:
        return "argument"
    if ", maybe-live-out" in described:
        return "output"
    return "constant" if ", constant" in described else "temporary"


def _buffers(kind: str | None, held: dict[tuple[int, int], list[tuple[str, str]]]) -> list[Buffer]:
    """Places of an allocation, each once: values that begin at the same byte and are no larger share the largest's."""
    if kind is None:
        return []
    largest: dict[int, tuple[int, str, str, int]] = {}
    for (offset, size), values in sorted(held.items(), key=lambda item: -item[0][1]):
        if offset in largest:
            most, name, shape, shared = largest[offset]
            largest[offset] = (most, name, shape, shared + len(values))
        else:
            name, shape = next((value for value in values if "(phi)" not in value[0]), values[0])
            largest[offset] = (size, name, _LAYOUT.sub("", shape), len(values) - 1)
    return [Buffer(size, kind, shape, name, shared) for size, name, shape, shared in largest.values()]

"""Programs as XLA prints them: computations, their instructions, and the sizes of shapes. Standard library only.

Reads what torch_xla traces and what the compiler dumps. Both write an instruction a line; the compiler names an element
of a tuple `%t#3` at times, and leaves out the types of operands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Of the types of numbers that programs hold; tokens and opaque values take no room.
BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "f8e5m2": 8,
    "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e3m4": 8, "f8e5m2fnuz": 8, "f8e4m3fnuz": 8, "f8e8m0fnu": 8,
    "f4e2m1fn": 4, "token": 0, "opaque": 0,
}  # fmt: skip

_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_COMPUTATION = re.compile(r"(ENTRY )?%?([^\s(]+) (?:\(.*)?\{\s*$")  # a text of torch_xla names no arguments
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([^\s=]+) = ")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation.

    type        shape of the result, with its layout
    operands    names of what it takes
    literal     what stands between its parentheses: a constant's value, a parameter's number
    attributes  what stands behind them
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute (`calls`, `body`, `condition`, `to_apply`) names."""
        found = re.search(rf"\b{attribute}=%?([^\s,}}]+)", self.attributes)
        return found[1] if found else None

    def branches(self) -> list[str]:
        """The computations between which a conditional chooses."""
        if found := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            return [name.strip().lstrip("%") for name in found[1].split(",")]
        return [name for key in ("true_computation", "false_computation") if (name := self.called(key))]

    def number(self, attribute: str) -> int | None:
        """An attribute that is a whole number, such as `channel_id` or `index`."""
        found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
        return int(found[1]) if found else None

    @property
    def source(self) -> str:
        """The operation of the traced program that it comes from; empty where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Module:
    """A program. `devices` run it together: partitions of all replicas."""

    computations: dict[str, Computation]
    entry: str
    devices: int

    def root(self, computation: str) -> Instruction:
        """What a computation results in."""
        return next(one for one in self.computations[computation].values() if one.root)


def parse(text: str) -> Module:
    """The program that a text describes. Raises ValueError where it is none, or is cut off."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = None
    for line in text.splitlines():
        if current is None:
            found = None if line.startswith("HloModule") else _COMPUTATION.match(line)
            if found:
                current = computations[found[2]] = {}
                entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(found[2], bool(found[1]), _COMMENT.sub("", line[found.end() :]))
    if entry is None or current is not None:
        raise ValueError("the text of a program ends before its entry computation does")
    for computation in computations.values():
        _name_elements(computation)
    header = text[: text.index("\n")] if "\n" in text else text
    return Module(computations, entry, _of_header(header, "num_partitions") * _of_header(header, "replica_count"))


def byte_count(shape: str) -> int:
    """Bytes of the numbers of a shape, or of a tuple of shapes, without padding to tiles.

    Raises ValueError for a type of number that is not known, whose size would otherwise count as nothing.
    """
    total = 0
    for kind, dimensions in _SHAPE.findall(_COMMENT.sub("", shape)):
        if kind not in BITS:
            raise ValueError(f"the size of {kind} is not known, in the shape {shape[:80]}")
        numbers = 1
        for size in filter(None, dimensions.replace("<=", "").split(",")):
            numbers *= int(size)
        total += (numbers * BITS[kind] + 7) // 8
    return total


def elements(tuple_type: str) -> list[str]:
    """The types within the type of a tuple; one that is no tuple is its own only element."""
    return _split(tuple_type[1 : _close(tuple_type, 0)]) if tuple_type.startswith("(") else [tuple_type]


def _instruction(name: str, root: bool, rest: str) -> Instruction:
    end = _close(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _close(rest, opening)
    opcode, literal = rest[end:opening].strip(), rest[opening + 1 : closing]
    takes = () if opcode in ("constant", "parameter") else _split(literal)
    operands = tuple(operand.split(" ")[-1].lstrip("%") for operand in takes)
    return Instruction(name, opcode, rest[:end], operands, literal, rest[closing + 1 :], root)


def _name_elements(computation: Computation) -> None:
    """Adds the elements that operands name `t#3`, as instructions of their own."""
    for operand in [name for one in computation.values() for name in one.operands if "#" in name]:
        source, _, index = operand.rpartition("#")
        if operand not in computation and source in computation and index.isdigit():
            kind = elements(computation[source].type)[int(index)]
            computation[operand] = Instruction(
                operand, "get-tuple-element", kind, (source,), source, f", index={index}", False
            )


def _of_header(header: str, key: str) -> int:
    found = re.search(rf"\b{key}=(\d+)", header)
    return int(found[1]) if found else 1


def between(text: str, opening: int, brackets: str) -> str:
    """What stands between the bracket that opens there and the one that closes it."""
    return text[opening + 1 : _close(text, opening, brackets)]


def _close(text: str, opening: int, brackets: str = "()") -> int:
    """Where the bracket that opens there closes."""
    depth = 0
    for found in re.compile(f"[{re.escape(brackets)}]").finditer(text, opening):
        depth += 1 if found[0] == brackets[0] else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"a bracket is not closed: {text[opening : opening + 80]}")


def _split(text: str) -> list[str]:
    """Parts between the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[(){}\[\],]", text):
        if found[0] == ",":
            if depth == 0:
                parts.append(text[start : found.start()].strip())
                start = found.end()
        else:
            depth += 1 if found[0] in "({[" else -1
    return [*parts, last] if (last := text[start:].strip()) else parts

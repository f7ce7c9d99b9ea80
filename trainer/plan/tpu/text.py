"""The text of a traced program as it goes to the compiler: named, with its donations, for the right number of chips."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.plan.tpu.hlo import between, elements

NAME = "gemcutter"  # of every program, so that its dumps are known
_HEADER = re.compile(r"HloModule ([^\s,]+)")
_WHERE = re.compile(r' (?:source_(?:file="[^"]*"|(?:end_)?line=\d+|(?:end_)?column=\d+)|stack_frame_id=\d+)')
_SHARDED = re.compile(r"\bdevices=\[([\d,]+)\]")
_LAYOUT = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True)
class Signature:
    """What a program takes and gives.

    parameters, outputs  shapes, without layouts
    tuple                whether it gives a tuple, be it of one
    held                 parameters whose sharding the text fixes; those of others follow from the operations
    outputs_held         the same of all outputs together
    """

    parameters: list[str]
    outputs: list[str]
    tuple: bool
    held: frozenset[int]
    outputs_held: bool


def signature(text: str) -> Signature:
    """Of the entry computation. Raises ValueError where the text is no program."""
    header = text.partition("\n")[0]
    marker = "entry_computation_layout={"
    start = header.find(marker)
    entry = re.search(r"^ENTRY .*?^\}", text, re.MULTILINE | re.DOTALL)
    if not _HEADER.match(header) or start < 0 or entry is None:
        raise ValueError(f"this is no program as torch_xla writes one: {header[:80]!r}")
    takes, _, gives = between(header, start + len(marker) - 1, "{}").partition(")->")
    numbers = re.findall(r" parameter\((\d+)\)[^\n]*\bsharding=\{", entry[0])
    return Signature(
        parameters=[_plain(shape) for shape in elements(f"{takes})")],
        outputs=[_plain(shape) for shape in elements(gives)],
        tuple=gives.startswith("("),
        held=frozenset(map(int, numbers)),
        outputs_held=re.search(r"^\s+ROOT [^\n]*\bsharding=\{", entry[0], re.MULTILINE) is not None,
    )


def prepared(text: str, donated: Mapping[int, int], chips: int) -> str:
    """The text for the compiler, equal for equal programs: without the places in source files that it came from.

    Raises ValueError where it is traced for another number of chips, or an output cannot take a parameter's memory.
    """
    of = signature(text)
    for devices in {_devices(found[1]) for found in _SHARDED.finditer(text)}:
        if devices != chips:
            raise ValueError(f"the program is traced for {devices} chips, and the hardware has {chips}")
    if len(set(donated.values())) < len(donated):
        raise ValueError("two outputs cannot take the memory of the same parameter")
    for output, parameter in donated.items():
        if not (0 <= output < len(of.outputs) and 0 <= parameter < len(of.parameters)):
            raise ValueError(f"output {output} or parameter {parameter} does not exist, so none can be donated")
        if of.outputs[output] != of.parameters[parameter]:
            raise ValueError(
                f"output {output} is {of.outputs[output]}, so it cannot take the memory of parameter {parameter}, "
                f"which is {of.parameters[parameter]}"
            )
    text = _WHERE.sub("", text)
    aliases = ""
    if donated:
        if "input_output_alias=" in text.partition("\n")[0]:
            raise ValueError("the program says itself what it donates")
        if of.tuple and len(of.outputs) == 1:
            raise ValueError("the only output of a program cannot take a parameter's memory unless it is no tuple")
        pairs = (f"{{{output if of.tuple else ''}}}: ({number}, {{}}, may-alias)" for output, number in donated.items())
        aliases = f", input_output_alias={{ {', '.join(pairs)} }}"
    return _HEADER.sub(f"HloModule {NAME}{aliases}", text, count=1)


def _plain(shape: str) -> str:
    return _LAYOUT.sub("", re.sub(r"/\*.*?\*/", "", shape)).strip()


def _devices(tiles: str) -> int:
    product = 1
    for size in tiles.split(","):
        product *= int(size)
    return product

"""How often the loops of a compiled program run. Standard library only.

XLA writes no trip count on many loops of scheduled programs, so the few instructions that a condition depends on are
carried out: counters of 64 bits in two halves, bounds computed before the loop, steps within fusions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Union

from trainer.plan.tpu.hlo import Instruction, Module

MOST = 50_000  # trips that are counted; a loop that runs longer is not resolved
_DEEPEST = 400  # instructions behind each other that are looked through

# A whole number, a tuple as a function of the index, or unknown.
_Known = Union[int, Callable[[int], "_Known"], None]
_INTEGER = re.compile(r"(pred|[su]\d+)\[(?:1(?:,1)*)?\]")
_PASSED_ON = {
    "copy", "copy-start", "copy-done", "bitcast", "reshape", "convert", "bitcast-convert", "opt-barrier",
    "optimization-barrier",
}  # fmt: skip
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
}
_COMPUTED: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "minimum": min,
    "maximum": max,
}


class Frame:
    """A computation with what is known of its arguments; values are worked out when asked for, once."""

    def __init__(self, module: Module, computation: str, argument: Callable[[int], _Known], depth: int = 0) -> None:
        self.module = module
        self.instructions = module.computations[computation]
        self.argument = argument
        self.depth = depth
        self._known: dict[str, _Known] = {}

    def value(self, name: str) -> _Known:
        """Of an instruction; None where it is not known or no whole number."""
        if name not in self._known:
            self._known[name] = None  # meanwhile, and for good where it hangs on itself
            instruction = self.instructions.get(name)
            self.depth += 1
            if instruction is not None and self.depth < _DEEPEST:
                self._known[name] = self._work_out(instruction)
            self.depth -= 1
        return self._known[name]

    def called(self, computation: str, operands: Sequence[str]) -> Frame:
        """A computation that this one hands these values to."""
        return Frame(self.module, computation, lambda index: self.value(operands[index]), self.depth)

    def _work_out(self, one: Instruction) -> _Known:
        if one.opcode == "parameter":
            return self.argument(int(one.literal))
        if one.opcode == "tuple":
            return lambda index: self.value(one.operands[index])
        if one.opcode == "get-tuple-element":
            index = one.number("index")
            whole = self.value(one.operands[0])
            return whole(index) if callable(whole) and index is not None else None
        if one.opcode in ("fusion", "call"):
            called = one.called("calls") or one.called("to_apply")
            if called is None:
                return None
            return self.called(called, one.operands).value(self.module.root(called).name)
        if one.opcode in _PASSED_ON:
            passed = self.value(one.operands[0])
            return _wrapped(passed, one.type) if isinstance(passed, int) else passed
        found = _INTEGER.match(one.type)
        return self._number(one) if found else None

    def _number(self, one: Instruction) -> int | None:
        if one.opcode == "constant":
            literal = one.literal.strip().strip("{}")
            if literal in ("true", "false"):
                return int(literal == "true")
            return int(literal) if re.fullmatch(r"-?\d+", literal) else None
        numbers = [self.value(name) for name in one.operands]
        known = [number for number in numbers if isinstance(number, int)]
        if len(known) < len(numbers):
            return None
        if one.opcode == "compare" and (found := re.search(r"direction=(\w+)", one.attributes)):
            return int(_COMPARED[found[1]](*known))
        if one.opcode in _COMPUTED:
            return _wrapped(_COMPUTED[one.opcode](*known), one.type)
        if one.opcode == "select":
            return known[1] if known[0] else known[2]
        if one.opcode == "not":
            return int(not known[0]) if one.type.startswith("pred") else _wrapped(~known[0], one.type)
        return None


def trips(frame: Frame, loop: Instruction) -> int | None:
    """How often the body of a loop of that computation runs; None where that cannot be told."""
    if found := re.search(r'known_trip_count[^0-9]*"?(\d+)', loop.attributes):
        return int(found[1])
    body, condition = loop.called("body"), loop.called("condition")
    if body is None or condition is None:
        return None
    goes_on, result = frame.module.root(condition).name, frame.module.root(body).name
    state = frame.value(loop.operands[0])
    for trip in range(MOST):
        again = Frame(frame.module, condition, _only(state)).value(goes_on)
        if not isinstance(again, int):
            return None
        if not again:
            return trip
        state = Frame(frame.module, body, _only(state)).value(result)
    return None


def within(frame: Frame, loop: Instruction, body: str) -> Frame:
    """The body of a loop, with what every trip finds the same: its constants, and what it only hands on."""
    start = frame.value(loop.operands[0])
    root = frame.module.root(body)
    instructions = frame.module.computations[body]

    def element(index: int) -> _Known:
        passed = instructions.get(root.operands[index]) if root.opcode == "tuple" else None
        if passed is None or passed.opcode != "get-tuple-element" or passed.number("index") != index:
            return None
        source = instructions[passed.operands[0]]
        return start(index) if source.opcode == "parameter" and callable(start) else None

    return Frame(frame.module, body, _only(element))


def _only(state: _Known) -> Callable[[int], _Known]:
    """The arguments of a computation that takes one."""
    return lambda index: state if index == 0 else None


def _wrapped(number: int, shape: str) -> int:
    """A number as a type of so many bits holds it."""
    found = _INTEGER.match(shape)
    if found is None:
        return number
    if found[1] == "pred":
        return int(bool(number))
    bits = int(found[1][1:])
    number %= 1 << bits
    return number - (1 << bits) if found[1][0] == "s" and number >> (bits - 1) else number

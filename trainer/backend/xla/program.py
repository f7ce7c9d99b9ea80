"""A function of tensors as one program of XLA, compiled once for each set of shapes: another program is an error."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch_xla
from torch import Tensor
from torch.utils._pytree import tree_leaves

from trainer.backend.xla.collectives import restart_channels

_C = torch_xla._XLAC

LONGEST = 160  # characters of an instruction that an error shows

Shapes = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


class RecompiledError(RuntimeError):
    """A function became another program although its tensors have the shapes they had; says what is different."""


class Program:
    """Calls a function, which torch_xla records, and hands what it recorded to the device in one piece.

    Each set of shapes is compiled once, when it is first met. A number that changes from call to call and is no tensor,
    or a branch of Python taken otherwise, would be compiled again each time, minutes at a time and unnoticed: it is
    refused instead, before anything is compiled.
    """

    def __init__(self, function: Callable[..., Any], kept: Callable[[], list[Tensor]]) -> None:
        """`kept` gives the tensors that a call may change beside its results: parameters, moments, averages."""
        self._function, self._kept = function, kept
        self._known: dict[Shapes, tuple[Any, str]] = {}  # digest and text of each program

    def __call__(self, *arguments: Any) -> Any:
        result, changed = self.record(*arguments)
        self._guard(shapes_of(arguments), changed)
        _C._xla_sync_multi(changed, [], False, True)  # does not wait
        return result

    def record(self, *arguments: Any) -> tuple[Any, list[Tensor]]:
        """The function's result, and all that a call changes or makes; nothing is computed yet."""
        if not self._known:  # what was done to them before is no part of the program
            _C._xla_sync_multi(self._kept(), [], False, True)
        restart_channels()
        result = self._function(*arguments)
        return result, [*self._kept(), *(value for value in tree_leaves(result) if isinstance(value, Tensor))]

    def _guard(self, shapes: Shapes, changed: list[Tensor]) -> None:
        """Raise RecompiledError where these shapes were met before, as another program."""
        digest = _C._get_graph_hash(changed)
        if shapes not in self._known:
            self._known[shapes] = digest, _C._get_xla_tensors_hlo(changed)
        elif digest != self._known[shapes][0]:
            name = getattr(self._function, "__qualname__", repr(self._function))
            where = _difference(self._known[shapes][1], _C._get_xla_tensors_hlo(changed))
            raise RecompiledError(
                f"{name} is another program than before, for tensors of the same shapes: {where}. A value that changes "
                "from call to call must be a tensor of at least one dimension, and no branch may depend on one"
            )


def _difference(before: str, now: str) -> str:
    """The first instruction in which two programs differ, in words."""
    for was, at in zip(_instructions(before), _instructions(now), strict=False):
        if was[0] != at[0]:
            return f"`{was[0][:LONGEST]}` was expected and `{at[0][:LONGEST]}` came{at[1]}"
    return f"it has {now.count(chr(10))} lines where it had {before.count(chr(10))}"


def _instructions(program: str) -> Iterator[tuple[str, str]]:
    """Each instruction without names and places, and where it comes from."""
    for line in program.splitlines():
        if " = " not in line:  # the head of a computation, which names all that it takes
            continue
        source = re.search(r'source_file="([^"]*)" source_line=(\d+)', line)
        operation = re.search(r'op_name="([^"]*)"', line)
        came = f" from {operation[1]}" if operation else ""
        came += f" in {source[1]}, line {source[2]}" if source and source[1] != "-" else ""
        yield re.sub(r", metadata=\{.*?\}|%[\w.-]+", "", line).strip(), came


def shapes_of(value: Any, name: str = "") -> Shapes:
    """Name, shape and dtype of every tensor in the arguments of a call."""
    if isinstance(value, Tensor):
        return ((name, tuple(value.shape), value.dtype),)
    if isinstance(value, (list, tuple)):
        return tuple(found for n, each in enumerate(value) for found in shapes_of(each, f"{name}[{n}]"))
    if dataclasses.is_dataclass(value):
        named = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return tuple(found for each, inner in named for found in shapes_of(inner, f"{name}.{each}"))
    return ()

"""Collectives within a manual region, written in StableHLO.

torch_xla's own add a number that lies on the device to their input, which no manual region can hold, and gather by a
sum. Each collective of a program has a channel of its own; `restart_channels` at its start makes equal programs equal.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from trainer.backend.xla.stablehlo import NUMBERS, call

_channels = itertools.count(1)


def restart_channels() -> None:
    """Begin a program."""
    global _channels
    _channels = itertools.count(1)


def all_gather(x: Tensor, dim: int, groups: list[list[int]]) -> Tensor:
    """The x of all chips of a group, end to end along a dimension, in the order of the group."""
    if len(groups[0]) == 1:
        return x
    return _along("all_gather", "all_gather_dim", x, dim, x.shape[dim] * len(groups[0]), groups)


def reduce_scatter(x: Tensor, dim: int, groups: list[list[int]]) -> Tensor:
    """Each chip's share, along a dimension, of the sum of the x of its group."""
    if len(groups[0]) == 1:
        return x
    return _along("reduce_scatter", "scatter_dimension", x, dim, x.shape[dim] // len(groups[0]), groups)


def all_reduce(x: Tensor, groups: list[list[int]]) -> Tensor:
    """The sum of the x of all chips of a group."""
    if len(groups[0]) == 1:
        return x
    return _collective("all_reduce", "", x, list(x.shape), groups)


def _along(kind: str, name: str, x: Tensor, dim: int, size: int, groups: list[list[int]]) -> Tensor:
    """Dimensions of 1 in front are left out: libtpu would scatter behind them by a sum of everything on every chip."""
    front = next(n for n in range(dim + 1) if n == dim or x.shape[n] > 1)
    shape = [size if at == dim else whole for at, whole in enumerate(x.shape)]
    inner = x.view(x.shape[front:])
    return _collective(kind, f"{name} = {dim - front} : i64", inner, shape[front:], groups).view(shape)


def _collective(kind: str, attributes: str, x: Tensor, shape: list[int], groups: list[list[int]]) -> Tensor:
    replicas = f"replica_groups = dense<{groups}> : tensor<{len(groups)}x{len(groups[0])}xi64>"
    channel = f"channel_handle = #stablehlo.channel_handle<handle = {next(_channels)}, type = 1>"
    attributes = ", ".join(filter(None, (attributes, replicas, channel, "use_global_device_ids")))
    number = f"tensor<{NUMBERS[x.dtype]}>"
    add = (
        f"({{ ^bb0(%a: {number}, %b: {number}): %s = stablehlo.add %a, %b : {number} stablehlo.return %s : {number} }})"
    )
    return call(
        kind, f'"stablehlo.{kind}"(%0) <{{{attributes}}}> {"" if kind == "all_gather" else add}', [x], shape, x.dtype
    )


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, groups: list[list[int]], gather: bool) -> Tensor:
        ctx.dim, ctx.groups, ctx.gather = dim, groups, gather
        return all_gather(x, dim, groups) if gather else reduce_scatter(x, dim, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        moved = reduce_scatter if ctx.gather else all_gather
        return moved(grad, ctx.dim, ctx.groups), None, None, None


def gathered(x: Tensor, dim: int, groups: list[list[int]]) -> Tensor:
    """`all_gather`, whose gradient is `reduce_scatter`."""
    moved: Tensor = _Moved.apply(x, dim, groups, True)
    return moved


def scattered(x: Tensor, dim: int, groups: list[list[int]]) -> Tensor:
    """`reduce_scatter`, whose gradient is `all_gather`."""
    moved: Tensor = _Moved.apply(x, dim, groups, False)
    return moved

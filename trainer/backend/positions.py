"""Positions of rows passed between the processes that share them: gathered, and summed to each process's own.

Each is the other's gradient. Knows no model.

Shape suffixes: B rows, S positions that one process holds, T those of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

# torch 2.13 renamed both, and warns at the old names; 2.9 has only those.
_ALL_GATHER = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def gather(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """[B, T, ...] from the [B, S, ...] of every process of a one-dimensional mesh, in the order of the processes."""
    gathered: Tensor = _Moved.apply(x, mesh.get_group(), _gather, _scatter_sum)
    return gathered


def scatter_sum(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The process's own [B, S, ...] of the sum of the [B, T, ...] of every process of a one-dimensional mesh."""
    scattered: Tensor = _Moved.apply(x, mesh.get_group(), _scatter_sum, _gather)
    return scattered


Move = Callable[[Tensor, dist.ProcessGroup], Tensor]


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, move: Move, back: Move) -> Tensor:
        ctx.group, ctx.back = group, back
        return move(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(grad, ctx.group), None, None, None


def _gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    parts = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
    _ALL_GATHER(parts, x, group=group)
    return parts.unflatten(0, (group.size(), -1)).movedim(0, 1).flatten(1, 2)


def _scatter_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = x.unflatten(1, (group.size(), -1)).movedim(1, 0).flatten(0, 1).contiguous()
    own = x.new_empty((x.shape[0], x.shape[1] // group.size(), *x.shape[2:]))
    _REDUCE_SCATTER(own, parts, group=group)
    return own

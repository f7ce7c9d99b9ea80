"""Positions of rows passed between the processes that share them: gathered, and summed to each process's own.

Each is the other's gradient. Knows no model.

Shape suffixes: B rows, S positions that one process holds, T those of all.
"""

from __future__ import annotations

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
    gathered: Tensor = _Gather.apply(x, mesh.get_group())
    return gathered


def scatter_sum(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """The process's own [B, S, ...] of the sum of the [B, T, ...] of every process of a one-dimensional mesh."""
    scattered: Tensor = _ScatterSum.apply(x, mesh.get_group())
    return scattered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scatter_sum(grad, ctx.group), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scatter_sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gather(grad, ctx.group), None


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

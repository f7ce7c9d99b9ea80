"""How a chip comes by whole weights, and hands back their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.backend.xla.collectives import all_gather, all_reduce, reduce_scatter
from trainer.backend.xla.region import Mesh
from trainer.backend.xla.sharding import Placement
from trainer.backend.xla.stablehlo import slice_at, update_at


@dataclass(frozen=True, eq=False)
class Weights:
    """Exchanges of weights on a mesh.

    compute  dtype of weights in forward and backward passes
    reduce   dtype in which gradients are summed over chips
    """

    mesh: Mesh
    compute: torch.dtype
    reduce: torch.dtype

    def gather(self, shard: Tensor, placement: Placement, first_key: Tensor | None) -> Tensor:
        """What a chip computes with of a weight, in the compute dtype: cast before it is gathered.

        `first_key` is the first row of the key head that it reads of those it shares, a number on the device.
        """
        cast, dim = shard.to(self.compute), placement.cut.fsdp
        if dim is None:
            return cast
        whole = self.whole(cast, dim).narrow(dim, 0, placement.part[dim])
        if placement.read is None:
            return whole
        assert first_key is not None
        return slice_at(whole, first_key, 0, placement.read)

    def whole(self, shard: Tensor, dim: int) -> Tensor:
        """The shards of the fsdp axis put together, along one dimension of the torus after the other: see `scatter`."""
        for groups in reversed(self.mesh.lines("fsdp")):
            shard = all_gather(shard, dim, groups)
        return shard

    def sum(self, gradient: Tensor, placement: Placement, first_key: Tensor | None) -> Tensor:
        """The chip's shard of a gradient, of what `gather` gave, summed over the chips that gathered the weight."""
        if placement.read is not None:
            assert first_key is not None
            gradient = update_at(gradient.new_zeros(placement.part), gradient, first_key, 0)
        cast, dim = gradient.to(self.reduce), placement.cut.fsdp
        if dim is None:
            return cast
        missing = placement.shard[dim] * placement.fsdp - placement.part[dim]
        if missing:
            shape = list(cast.shape)
            shape[dim] = missing
            cast = torch.cat([cast, cast.new_zeros(shape)], dim)
        return self.scatter(cast, dim)

    def scatter(self, x: Tensor, dim: int) -> Tensor:
        """A chip's shard of the sum of x over the fsdp axis, along one dimension of the torus after the other.

        The same bytes as in one step; but in one step over a square of chips, libtpu sums everything on every chip and
        then throws most of it away, which is twice as many.
        """
        for groups in self.mesh.lines("fsdp"):
            x = reduce_scatter(x, dim, groups)
        return x

    def finish(self, gradient: Tensor, placement: Placement) -> Tensor:
        """The sum over the chips that `sum` left out: those of other axes, which saw other rows, heads or positions."""
        axes: tuple[str, ...] = ("replica",)
        if placement.cut.fsdp is None:
            axes += ("fsdp",)
        if placement.cut.tensor is None:
            axes += ("tensor",)
        axes = tuple(axis for axis in axes if self.mesh.axes[axis] > 1)
        if not axes:
            return gradient
        return all_reduce(gradient.to(self.reduce), self.mesh.groups(axes)).to(gradient.dtype)

"""Manual regions: between `enter` and `leave` a tensor is what one chip holds, and every collective is written out.

The partitioner of XLA then has nothing to guess: what a step moves between chips is what `collectives` says.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch_xla
import torch_xla.distributed.spmd as xs
from torch import Tensor

from trainer.backend.xla.sharding import Spec

_C = torch_xla._XLAC
_MANUAL = 4  # xla::OpSharding::MANUAL


class Mesh:
    """Chips on named axes, outermost first.

    axes   size of each axis
    torus  sizes of the dimensions of the torus that the chips' links form, outermost first; their product is that of
           the axes
    chips  number of the chip at each place, places counted along the torus; by default as they come
    """

    def __init__(self, axes: dict[str, int], torus: Sequence[int] = (), chips: Sequence[int] | None = None) -> None:
        self.axes = axes
        self.size = math.prod(axes.values())
        self._chips = np.arange(self.size) if chips is None else np.asarray(chips)
        self._torus = tuple(torus) or (self.size,)
        self.torch_xla = _TorchXlaMesh(self._chips, axes)

    def sharding(self, spec: Spec) -> object:
        """As torch_xla wants it."""
        return self.torch_xla.get_op_sharding(spec)

    @functools.lru_cache(64)  # noqa: B019  # a mesh lives as long as the process
    def groups(self, axes: tuple[str, ...]) -> list[list[int]]:
        """The chips that differ in their places on these axes only, group by group."""
        return self._groups(self.axes, axes)

    @functools.lru_cache(64)  # noqa: B019
    def lines(self, axis: str) -> list[list[list[int]]]:
        """The same of one axis, as steps: groups along each dimension of the torus that the axis lies on, outermost
        first."""
        parts: dict[str, int] = {}
        steps: list[str] = []
        inner = math.prod(list(self.axes.values())[list(self.axes).index(axis) + 1 :])
        for number, size in enumerate(reversed(_overlap(self._torus, inner, self.axes[axis]))):
            parts[f"{axis} {number}"] = size
            steps.append(f"{axis} {number}")
        split: dict[str, int] = {}
        for name, size in self.axes.items():
            split |= parts if name == axis else {name: size}
        return [self._groups(split, (step,)) for step in steps]

    def _groups(self, sizes: dict[str, int], axes: tuple[str, ...]) -> list[list[int]]:
        names = list(sizes)
        order = [n for n, name in enumerate(names) if name not in axes] + [names.index(axis) for axis in axes]
        places = self._chips.reshape(tuple(sizes.values())).transpose(order)
        groups: list[list[int]] = places.reshape(-1, math.prod(sizes[axis] for axis in axes)).tolist()
        return groups

    def place(self, chip: int) -> dict[str, int]:
        """Where a chip lies on each axis."""
        (at,) = np.argwhere(self._chips.reshape(tuple(self.axes.values())) == chip)
        return dict(zip(self.axes, map(int, at), strict=True))

    def count(self, axes: tuple[str, ...]) -> int:
        """Chips of such a group."""
        return math.prod(self.axes[axis] for axis in axes)

    def enter(self, x: Tensor, spec: Spec) -> Tensor:
        """What a chip holds of a tensor that is cut so."""
        return _C._spmd_full_to_shard_shape(self.mark(x, spec))

    def cuts(self, spec: Spec) -> bool:
        """Whether chips hold different parts of such a tensor."""
        return any(self.count((axes,) if isinstance(axes, str) else axes or ()) > 1 for axes in spec)

    def mark(self, x: Tensor, spec: Spec) -> Tensor:
        """The same tensor, which the mesh is to cut so."""
        marked = x.clone()
        _C._xla_annotate_custom_sharding(marked, self.sharding(spec))
        return marked

    def leave(self, x: Tensor, spec: Spec) -> Tensor:
        """The tensor of which each chip holds such a part."""
        marked = x.clone()
        _C._mark_manual_sharding(marked, _C.OpSharding([], [], [], _MANUAL))
        shape = [
            size * self.count((axes,) if isinstance(axes, str) else axes or ())
            for size, axes in zip(x.shape, spec, strict=True)
        ]
        return _C._spmd_shard_to_full_shape(marked, self.sharding(spec), shape, x.dtype)


class _TorchXlaMesh(xs.Mesh):
    """torch_xla's own, which may have more chips than are attached: a plan has."""

    def __init__(self, chips: np.ndarray, axes: dict[str, int]) -> None:
        self.device_ids, self.mesh_shape, self.axis_names = chips, tuple(axes.values()), tuple(axes)


def chip_number(device: str) -> int:
    """Of TPU:3, as torch_xla names a chip, 3."""
    return int(device.rpartition(":")[2])


def _overlap(torus: Sequence[int], inner: int, size: int) -> list[int]:
    """How an axis lies on the dimensions of a torus, innermost first: chips of it along each; those within it are
    `inner`. One step where the dimensions do not divide so."""
    steps, skipped, left = [], inner, size
    for along in reversed(torus):
        taken = math.gcd(along, skipped)
        skipped //= taken
        if skipped == 1 and left > 1 and (part := math.gcd(along // taken, left)) > 1:
            steps.append(part)
            left //= part
    return steps if left == 1 else [size]

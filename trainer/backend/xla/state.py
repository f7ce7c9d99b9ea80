"""Tensors on the chips of a mesh, read and filled by the chips' parts through the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch_xla
from torch import Tensor
from torch_xla.distributed.spmd import XLAShardedTensor

from trainer.backend.xla.region import Mesh, chip_number
from trainer.backend.xla.sharding import Placement, layer_names
from trainer.sharded import Parted

_C = torch_xla._XLAC


OnChip = tuple[dict[str, int], Tensor]  # a chip's places on the axes, and what it holds, on the host


class Stored:
    """A parameter, or what has the shape of one, as the mesh stores it.

    Its layers are read, or filled, one after the other; between the first and the last of them the parts of this
    process's chips lie on the host, so that each is copied once.
    """

    def __init__(self, tensor: Tensor, placement: Placement, mesh: Mesh) -> None:
        self.tensor, self.placement, self._mesh = tensor, placement, mesh
        self._parts: list[OnChip] = []
        self._devices: list[str] = []
        self._left = 0  # layers that are still to come

    def named(self, name: str) -> dict[str, Parted]:
        """Each layer under its own name, or the whole where it is none of a block."""
        layers = self.placement.layers
        if layers is None:
            return {name: Layer(self, None)}
        return {each: Layer(self, number) for number, each in enumerate(layer_names(name, layers))}

    def download(self) -> list[OnChip]:
        """The parts, for one of the layers."""
        self._begin()
        parts = self._parts
        self._end()
        return parts

    def upload(self, write: Callable[[list[OnChip]], None]) -> None:
        """Let `write` fill one layer of the parts; with the last one the chips get them."""
        self._begin()
        write(self._parts)
        parts = [part for _, part in self._parts]
        if not self._end():
            return
        if self._mesh.cuts(self.placement.spec):
            _C._load_local_shards(self.tensor, parts, self._devices)
        else:  # that refuses what every chip has whole
            with torch.no_grad():
                self.tensor.copy_(parts[0])
            _C._xla_sync_multi([self.tensor], [], True, True)

    def _begin(self) -> None:
        if self._left == 0:
            shards = XLAShardedTensor(self.tensor).local_shards
            self._devices = [shard.shard_device for shard in shards]
            self._parts = [(self._mesh.place(chip_number(shard.shard_device)), shard.data) for shard in shards]
            self._left = self.placement.layers or 1

    def _end(self) -> bool:
        """Whether that was the last layer."""
        self._left -= 1
        if self._left == 0:
            self._parts = []
        return self._left == 0


class Layer(Parted):
    """A layer of a stored tensor, or all of one that has no layers."""

    def __init__(self, stored: Stored, number: int | None) -> None:
        self._stored, self._number = stored, number
        self.shape, self.dtype = torch.Size(stored.placement.shape), stored.tensor.dtype

    def parts(self) -> list[tuple[Tensor, list[int]]]:
        found = []
        for place, part in self._stored.download():
            own, offset = self._own(place, part)
            if self._first(place) and own.numel():
                found.append((own.clone(), offset))
        return found

    def fill(self, read: Callable[[Tensor, list[int]], None]) -> None:
        def write(parts: list[OnChip]) -> None:
            done: dict[tuple[int, ...], Tensor] = {}
            for place, part in parts:
                own, offset = self._own(place, part)
                if tuple(offset) in done:
                    own.copy_(done[tuple(offset)])
                elif own.numel():
                    read(own, offset)
                    done[tuple(offset)] = own

        self._stored.upload(write)

    def _own(self, place: dict[str, int], part: Tensor) -> tuple[Tensor, list[int]]:
        """A view of what a chip holds of the layer, without what fills its last shards, and where that lies."""
        offset, size = self._stored.placement.box(place["tensor"], place["fsdp"])
        layer = part if self._number is None else part[self._number]
        return layer[tuple(slice(0, n) for n in size)], offset

    def _first(self, place: dict[str, int]) -> bool:
        """Whether the chip there is the first of those that hold this part."""
        cut = self._stored.placement.cut
        return (
            place["replica"] == 0
            and (cut.tensor is not None or place["tensor"] == 0)
            and (cut.fsdp is not None or place["fsdp"] == 0)
        )

"""Which rows of a global batch a host reads, and which of its chips get them.

A feeder is one place of replica x fsdp; it takes as many rows as any other, and its chips, those of the tensor axis,
all get the same ones. Links decide where on the mesh a chip lies, so the feeders of a host need not be neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch_xla
from torch import Tensor

from conf.exits import ConfigError
from trainer.backend.base import World
from trainer.backend.xla.region import Mesh
from trainer.backend.xla.sharding import Spec

ROWS: Spec = (("replica", "fsdp"), None)  # of a batch: its rows are cut, whole along positions


class Feeders:
    """Those of this host.

    here   numbers of those that it reads for, in the order in which their rows lie in what it reads
    world  hosts that read: those that read for the same feeders, and so the same rows, count as one
    """

    def __init__(self, mesh: Mesh, chips: Sequence[int], processes: World) -> None:
        """`chips` are this host's, in torch_xla's order. Raises ConfigError where hosts share some feeders only."""
        self._mesh, self._of_chips = mesh, [feeder_of(mesh, chip) for chip in chips]
        self.here = sorted(set(self._of_chips))
        self._number = mesh.axes["replica"] * mesh.axes["fsdp"]
        read = torch.zeros(processes.size, self._number, dtype=torch.int64)
        read[processes.rank, self.here] = 1
        if processes.size > 1:
            dist.all_reduce(read)
        self.world = reading([row.nonzero().flatten().tolist() for row in read], processes.rank)

    def to_chips(self, x: Tensor) -> Tensor:
        """Rows that this host read, [B of its feeders, ...], as part of those of all hosts."""
        of_feeder = dict(zip(self.here, x.chunk(len(self.here)), strict=True))
        parts = [of_feeder[feeder].contiguous() for feeder in self._of_chips]
        shape = [len(parts[0]) * self._number, *x.shape[1:]]
        rows: Tensor = torch_xla._XLAC._global_tensor_from_cpu_shards(parts, self._mesh.sharding(ROWS), shape)
        return rows


def feeder_of(mesh: Mesh, chip: int) -> int:
    """The number of the feeder that a chip belongs to."""
    place = mesh.place(chip)
    return place["replica"] * mesh.axes["fsdp"] + place["fsdp"]


def reading(feeders_of: Sequence[Sequence[int]], own: int) -> World:
    """This host among those that read different rows, from the feeders of every host.

    Raises ConfigError where two hosts share some of their feeders and not all, or have not as many.
    """
    groups = sorted(set(map(tuple, feeders_of)))
    every = sorted(feeder for group in groups for feeder in group)
    if len({len(group) for group in groups}) > 1 or every != sorted(set(every)):
        raise ConfigError(
            f"hosts cannot read for their chips: they would for the feeders {groups}, of which each must have as many, "
            "and share all or none with another. Choose a mesh.tensor that divides the chips of a host, or a multiple"
        )
    return World(groups.index(tuple(feeders_of[own])), len(groups))

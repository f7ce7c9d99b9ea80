"""Context parallelism: the processes of one mesh axis hold runs of the positions of each row.

Keys, values and segment ids of all of them are gathered inside attention, so that one mask serves documents and windows
as if rows were whole; queries stay apart, and with them most of the memory and work of a long row (all-gather context
parallelism of Llama 3, arXiv 2407.21783 section 3.3.2). Knows no model.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from trainer.backend.positions import gather


class SharedRows:
    """`trainer.model.attention.Rows` over a one-dimensional mesh, positions in the order of its processes."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def first(self, positions: int) -> int:
        """Where this process's run begins, if all hold so many."""
        return self._mesh.get_local_rank() * positions

    def whole(self, x: Tensor) -> Tensor:
        """What all processes hold; backward, the sum of their gradients for one's own."""
        return gather(x, self._mesh)

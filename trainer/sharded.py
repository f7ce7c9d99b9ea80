"""What a process holds of a tensor that several share. Knows nothing of models or files."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def first_copy(tensor: Tensor) -> bool:
    """Whether this process is the first of those that hold the same part of a tensor.

    A tensor that is not sharded is a part of its own on each process.
    """
    if not isinstance(tensor, DTensor):
        return True
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return not any(isinstance(p, Replicate) and at for p, at in zip(tensor.placements, coordinate, strict=True))

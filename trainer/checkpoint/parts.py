"""Sharded tensors <-> the parts of a checkpoint, on any mesh.

A process writes the parts it holds, each with its place in the whole tensor. A process that loads copies from the parts
that overlap what it holds, so the mesh that saved and the mesh that loads need have nothing in common, and no process
ever holds more than its own part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from conf.exits import DataError
from trainer.checkpoint.committed import PIECE, Committed
from trainer.checkpoint.payload import Payload
from trainer.sharded import Parted, first_copy

_MOST = 64 * 2**20  # bytes of a part that are read at once


@dataclass(frozen=True)
class Held:
    """A box of a whole tensor that this process is to write, and its values, wherever they lie."""

    tensor: str
    offset: list[int]
    values: Tensor


@dataclass(frozen=True)
class Holding:
    """What one process is to write of some tensors.

    tensors  name -> shape and dtype of the whole, the same on every process
    parts    those that this process writes; their values may be the memory that training goes on to change
    """

    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: list[Held] = field(default_factory=list)


def holding(tensors: Mapping[str, Tensor | Parted], first: bool) -> Holding:
    """What this process is to write of tensors, sharded or not; the same names on every process.

    Of copies, only the first is written: `first` says whether this process writes tensors that are not sharded.
    """
    made = Holding()
    for name, tensor in tensors.items():
        made.tensors[name] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        parts = tensor.parts() if isinstance(tensor, Parted) else _own(tensor, first)
        made.parts.extend(Held(name, offset, values) for values, offset in parts)
    return made


def _own(tensor: Tensor, first: bool) -> list[tuple[Tensor, list[int]]]:
    """What this process is to save of a tensor: one part or none."""
    local, offset, mine = held(tensor, first)
    return [(local, offset)] if mine and local.numel() else []


def held(tensor: Tensor, first: bool) -> tuple[Tensor, list[int], bool]:
    """What this process holds of a tensor, where that lies in the whole, and whether it is the copy to write."""
    if not isinstance(tensor, DTensor):
        return tensor, [0] * tensor.ndim, first
    mesh = tensor.device_mesh
    _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    return tensor.to_local(), list(offset), first_copy(tensor)


def no_more(name: str) -> bool:
    """For `load_tensors`: every tensor of the checkpoint needs a place."""
    return False


@torch.no_grad()
def load_tensors(
    checkpoint: Committed, tensors: Mapping[str, Tensor | Parted], left: Callable[[str], bool] = no_more
) -> None:
    """Fill each tensor in place from a checkpoint, whatever mesh either was made on.

    `left` says which tensors of the checkpoint need no place among these. Files that were not verified before are, so
    that no tensor changes before all that is read was.

    Raises DataError, and changes nothing, where a tensor is missing, has no place, or is of another shape or a dtype
    whose values would be rounded, where a file that is needed is not what the manifest says, or storage does not
    answer.
    """
    if problems := list(_misfits(checkpoint, tensors, left)):
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise DataError(f"{checkpoint.payload} does not fit this model: {shown}")
    checkpoint.verify(sorted({part.file for name in tensors for part in checkpoint.parts[name]}))
    reader = Payload(checkpoint)
    for name, tensor in tensors.items():
        fill = functools.partial(_fill, reader, checkpoint, name)
        if isinstance(tensor, Parted):
            tensor.fill(fill)
        else:
            local, offset, _ = held(tensor, first=True)
            fill(local, offset)


def _misfits(
    checkpoint: Committed, tensors: Mapping[str, Tensor | Parted], left: Callable[[str], bool]
) -> Iterator[str]:
    for name, tensor in tensors.items():
        saved = checkpoint.tensors.get(name)
        if saved is None:
            yield f"{name} of shape {list(tensor.shape)} is absent in it"
        elif saved["shape"] != list(tensor.shape):
            yield f"{name} of shape {list(tensor.shape)} is of shape {saved['shape']} in it"
        elif not _holds(tensor.dtype, getattr(torch, saved["dtype"])):
            yield f"{name} of {str(tensor.dtype).removeprefix('torch.')} is of {saved['dtype']} in it"
    for name in checkpoint.tensors:
        if name not in tensors and not left(name):
            yield f"{name} has no place in this model"


def _holds(wide: torch.dtype, saved: torch.dtype) -> bool:
    """Whether one dtype holds every value of another."""
    if wide.is_floating_point != saved.is_floating_point:
        return False
    return torch.promote_types(wide, saved) == wide


def read_tensor(checkpoint: Committed, name: str) -> Tensor:
    """One whole tensor on the host. Raises as `load_tensors` does."""
    saved = checkpoint.tensors[name]
    tensor = torch.empty(saved["shape"], dtype=getattr(torch, saved["dtype"]))
    checkpoint.verify(sorted({part.file for part in checkpoint.parts[name]}))
    _fill(Payload(checkpoint), checkpoint, name, tensor, [0] * tensor.ndim)
    return tensor


@torch.no_grad()
def difference(a: Committed, b: Committed, name: str) -> tuple[bool, float]:
    """Whether a tensor of one shape and dtype has the same bits in two checkpoints, and the largest difference.

    Read in pieces; both must be verified. The difference is NaN where one of two values is.
    """
    shape, dtype = a.tensors[name]["shape"], getattr(torch, a.tensors[name]["dtype"])
    readers, same, most = [(Payload(each), each) for each in (a, b)], True, 0.0
    rows = max(1, PIECE // max(1, math.prod(shape[1:]) * dtype.itemsize)) if shape else 1
    for begin in range(0, shape[0] if shape else 1, rows):
        size = [min(rows, shape[0] - begin), *shape[1:]] if shape else []
        pieces = [torch.empty(size, dtype=dtype) for _ in readers]
        for (reader, each), piece in zip(readers, pieces, strict=True):
            _fill(reader, each, name, piece, [begin, *(0 for _ in shape[1:])] if shape else [])
        x, y = pieces
        if not torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)):
            same = False
            apart = (x.double() - y.double()).abs()
            most = math.nan if apart.isnan().any() else max(most, apart.max().item())
    return same, most


def _fill(reader: Payload, checkpoint: Committed, name: str, local: Tensor, offset: list[int]) -> None:
    """Copy into `local`, which lies at `offset`, from every part of a tensor that overlaps it."""
    filled = 0
    for part in checkpoint.parts[name]:
        first = [max(a, b) for a, b in zip(offset, part.offset, strict=True)]
        stop = [
            min(a + n, b + m)
            for a, n, b, m in zip(offset, local.shape, part.offset, part.shape, strict=True)
        ]  # fmt: skip
        if any(a >= b for a, b in zip(first, stop, strict=True)):
            continue
        there = tuple(slice(a - at, b - at) for a, b, at in zip(first, stop, part.offset, strict=True))
        here = tuple(slice(a - at, b - at) for a, b, at in zip(first, stop, offset, strict=True))
        if not there:
            local.copy_(reader.rows(part, 0, 1))
            filled += 1
            continue
        # Rows of a part lie one behind the other, so those that overlap are one run of bytes.
        rows = max(1, _MOST // (math.prod(part.shape[1:]) * local.element_size()))
        for begin in range(there[0].start, there[0].stop, rows):
            end = min(begin + rows, there[0].stop)
            piece = reader.rows(part, begin, end)[:, *there[1:]]
            at = here[0].start + begin - there[0].start
            local[at : at + end - begin, *here[1:]].copy_(piece)
            filled += piece.numel()
    if filled != local.numel():
        raise DataError(f"{checkpoint.payload} holds {filled} of {local.numel()} values of {name}: it is incomplete")

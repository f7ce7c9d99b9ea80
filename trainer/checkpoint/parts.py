"""Sharded tensors <-> safetensors files, on any mesh.

A process writes the parts it holds, each with its place in the whole tensor. A process that loads copies from the parts
that overlap what it holds, so the mesh that saved and the mesh that loads need have nothing in common, and no process
ever holds more than its own part. safetensors carries no code, unlike pickle.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from conf.exits import DataError
from trainer.sharded import Parted, first_copy

if TYPE_CHECKING:
    from trainer.checkpoint.directory import Committed


@dataclass(frozen=True)
class Part:
    """A box of a whole tensor, stored in a file under a name of its own."""

    tensor: str
    file: str
    key: str
    offset: list[int]
    shape: list[int]


def write_parts(tensors: Mapping[str, Tensor | Parted], file: Path, first: bool) -> dict[str, Any]:
    """Write this process's parts to one file; returns what the manifest says of them.

    Of copies, only the first is written: `first` says whether this process writes tensors that are not sharded.
    """
    stored, parts, whole = {}, [], {}
    for name, tensor in tensors.items():
        whole[name] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        held_parts = tensor.parts() if isinstance(tensor, Parted) else _own(tensor, first)
        for number, (local, offset) in enumerate(held_parts):
            key = f"{name}#{number}" if number else name
            stored[key] = local.detach().to("cpu").contiguous()
            parts.append(Part(name, file.name, key, offset, list(local.shape)))
    save_file(stored, file)
    return {"tensors": whole, "parts": [asdict(part) for part in parts]}


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


@torch.no_grad()
def load_tensors(checkpoint: Committed, tensors: Mapping[str, Tensor | Parted]) -> None:
    """Fill each tensor in place from a checkpoint, whatever mesh either was made on.

    Raises DataError where a tensor is missing or of another shape, or where a file that is needed is not what the
    manifest says.
    """
    for name, tensor in tensors.items():
        saved = checkpoint.tensors.get(name)
        if saved is None or saved["shape"] != list(tensor.shape):
            found = "absent" if saved is None else f"of shape {saved['shape']}"
            raise DataError(
                f"{checkpoint.payload} does not fit this model: {name} of shape {list(tensor.shape)} is {found} in it"
            )
        parts = checkpoint.parts[name]
        if isinstance(tensor, Parted):
            tensor.fill(functools.partial(_read, checkpoint, parts))
        else:
            local, offset, _ = held(tensor, first=True)
            _fill(checkpoint, local, offset, parts)


def _read(checkpoint: Committed, parts: list[Part], local: Tensor, offset: list[int]) -> None:
    _fill(checkpoint, local, offset, parts)


def read_tensor(checkpoint: Committed, name: str) -> Tensor:
    """One whole tensor on the host. Raises as `load_tensors` does."""
    saved = checkpoint.tensors[name]
    tensor = torch.empty(saved["shape"], dtype=getattr(torch, saved["dtype"]))
    _fill(checkpoint, tensor, [0] * tensor.ndim, checkpoint.parts[name])
    return tensor


def _fill(checkpoint: Committed, local: Tensor, offset: list[int], parts: list[Part]) -> None:
    """Copy into `local`, which lies at `offset`, from every part that overlaps it."""
    filled = 0
    for part in parts:
        first = [max(a, b) for a, b in zip(offset, part.offset, strict=True)]
        stop = [
            min(a + n, b + m)
            for a, n, b, m in zip(offset, local.shape, part.offset, part.shape, strict=True)
        ]  # fmt: skip
        if any(a >= b for a, b in zip(first, stop, strict=True)):
            continue
        there = tuple(slice(a - at, b - at) for a, b, at in zip(first, stop, part.offset, strict=True))
        here = tuple(slice(a - at, b - at) for a, b, at in zip(first, stop, offset, strict=True))
        with safe_open(checkpoint.verified(part.file), framework="pt") as file:
            piece = file.get_slice(part.key)[there] if there else file.get_tensor(part.key)
        local[here].copy_(piece)
        filled += piece.numel()
    if filled != local.numel():
        raise DataError(f"{checkpoint.payload} holds {filled} of {local.numel()} values of a tensor: it is incomplete")

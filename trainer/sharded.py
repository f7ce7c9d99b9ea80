"""What a process holds of a tensor that several share. Knows nothing of models or files."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def first_copy(tensor: Tensor) -> bool:
    """Whether this process is the first of those that hold the same part of a tensor.

    A tensor that is not sharded is a part of its own on each process.
    """
    if not isinstance(tensor, DTensor):
        return True
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return not any(isinstance(p, Replicate) and at for p, at in zip(tensor.placements, coordinate, strict=True))


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, as a plain one that shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Parted(abc.ABC):
    """A tensor whose parts lie on several devices that this process drives: read and filled through the host.

    shape  of the whole
    dtype  of its numbers
    """

    shape: torch.Size
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        """Dimensions of the whole."""
        return len(self.shape)

    @abc.abstractmethod
    def parts(self) -> list[tuple[Tensor, list[int]]]:
        """Copies on the host of the parts that this process is to save, each with its place in the whole.

        Of copies that several devices hold only the first counts, wherever it is.
        """

    @abc.abstractmethod
    def fill(self, read: Callable[[Tensor, list[int]], None]) -> None:
        """Give every part new numbers: `read` writes those of a place in the whole into a tensor on the host."""


class _Box(NamedTuple):
    """Where a part lies in its matrix."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def numel(self) -> int:
        return self.rows * self.columns

    def of(self, matrix: Tensor) -> Tensor:
        return matrix[self.row : self.row + self.rows, self.column : self.column + self.columns]


class WholeMatrices:
    """Work on whole matrices of which processes hold parts, each matrix on one process.

    Parts go to the process that works on the matrix, and parts of the result come back: two exchanges of all with all.
    Beside its own parts a process holds its share of the matrices.
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        """Every process calls it with its parts of the same matrices, in the same order."""
        self._shapes = [matrix.shape for matrix in matrices]
        self._rank, self._size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if self._size == 1:
            return
        boxes = torch.zeros(self._size, len(matrices), 4, dtype=torch.int64, device=own_part(matrices[0]).device)
        boxes[self._rank] = torch.tensor([_box(matrix) for matrix in matrices])
        dist.all_reduce(boxes)
        self._boxes = [[_Box(*box) for box in of_rank] for of_rank in boxes.tolist()]
        # Of each matrix the first of those that hold the same part: of copies one is sent.
        self._senders = [
            set({box: rank for rank, box in reversed(list(enumerate(held)))}.values())
            for held in zip(*self._boxes, strict=True)
        ]
        self._works_on = _shared_out(self._shapes, self._size)

    def each(self, work: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
        """This process's parts of what `work` makes of each whole matrix, from its parts of those; shapes stay."""
        if self._size == 1:
            return [work(part) for part in parts]
        everyone, mine = range(self._size), self._works_on[self._rank]
        nothing = parts[0].new_empty(0)
        sent_by = [[n for n in mine if sender in self._senders[n]] for sender in everyone]
        pieces = _exchange(
            [[parts[n] for n in self._works_on[to] if self._rank in self._senders[n]] for to in everyone],
            [[self._boxes[sender][n] for n in numbers] for sender, numbers in enumerate(sent_by)],
            nothing,
        )
        whole = {n: nothing.new_empty(self._shapes[n]) for n in mine}
        for sender, numbers in enumerate(sent_by):
            for n, piece in zip(numbers, pieces[sender], strict=True):
                self._boxes[sender][n].of(whole[n]).copy_(piece)
        done = {n: work(matrix) for n, matrix in whole.items()}
        own = _exchange(
            [[self._boxes[to][n].of(done[n]) for n in mine] for to in everyone],
            [[self._boxes[self._rank][n] for n in self._works_on[sender]] for sender in everyone],
            nothing,
        )
        results = {
            n: part for of, given in zip(self._works_on, own, strict=True) for n, part in zip(of, given, strict=True)
        }
        return [results[n] for n in range(len(parts))]


def _exchange(sent: list[list[Tensor]], boxes: list[list[_Box]], nothing: Tensor) -> list[list[Tensor]]:
    """What each process sends to this one, whose boxes are known, in return for what this one sends to each.

    `nothing` is an empty tensor of their dtype and device.
    """
    outgoing = torch.cat([nothing, *(part.flatten() for to in sent for part in to)])
    sizes = [[box.numel for box in sender] for sender in boxes]
    incoming = nothing.new_empty(sum(map(sum, sizes)))
    dist.all_to_all_single(
        incoming, outgoing, [sum(sender) for sender in sizes], [sum(part.numel() for part in to) for to in sent]
    )
    flat = iter(incoming.split([size for sender in sizes for size in sender]))
    return [[next(flat).view(box.rows, box.columns) for box in sender] for sender in boxes]


def _box(matrix: Tensor) -> _Box:
    if not isinstance(matrix, DTensor):
        return _Box(0, 0, *matrix.shape)
    shape, offset = compute_local_shape_and_global_offset(matrix.shape, matrix.device_mesh, matrix.placements)
    return _Box(*offset, *shape)


def _shared_out(shapes: Sequence[torch.Size], size: int) -> list[list[int]]:
    """The numbers of the matrices that each process works on: the costliest first, each to whoever has least to do."""
    cost = [rows * columns * min(rows, columns) for rows, columns in shapes]
    works_on: list[list[int]] = [[] for _ in range(size)]
    load = [0] * size
    for number in sorted(range(len(shapes)), key=lambda number: -cost[number]):
        least = load.index(min(load))
        works_on[least].append(number)
        load[least] += cost[number]
    return works_on

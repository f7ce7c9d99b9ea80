"""What an update of the weights needs: moments, an average, and with Muon whole matrices (`trainer.sharded`)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from trainer.plan.layout import MASTER, Layout

ITERATIONS = 5  # of `trainer.optim.muon.orthogonal`

Matrix = tuple[int, int]  # rows and columns


def moment_numbers(at: Layout) -> int:
    """Numbers that the optimizer keeps: AdamW two of a weight, Muon one."""
    return 2 * at.held_numbers() - (at.held_matrix_numbers() if at.optimizer == "muon" else 0)


def working_bytes(at: Layout) -> int:
    """Bytes beside weights, gradients and moments while weights are updated; a fused AdamW needs none."""
    return max(_muon_bytes(at)) if at.optimizer == "muon" else 0


def exchanged_numbers(at: Layout) -> tuple[int, int]:
    """Numbers that the process takes in or hands out, whichever are more: parts of matrices, then of results."""
    own, worked = at.held_matrix_numbers(), sum(rows * columns for rows, columns in own_matrices(at))
    return max(own, worked), max(own, _handed_out(at))


def update_flops(at: Layout) -> int:
    """Of matrix products of one process."""
    if at.optimizer != "muon":
        return 0
    each = (sorted(matrix) for matrix in own_matrices(at))
    return sum(2 * ITERATIONS * less**2 * (2 * more + less) for less, more in each)


def update_bytes(at: Layout) -> int:
    """Bytes of its own memory that a process reads and writes, but for what is done to whole matrices."""
    adamw, muon, average = 4 + 3, 13 + 8, 5 + 3  # read and written of each weight by the operations in turn
    matrices = at.held_matrix_numbers() if at.optimizer == "muon" else 0
    rest = at.held_numbers() - matrices
    return MASTER * (adamw * rest + muon * matrices + (average * at.held_numbers() if at.average else 0))


def own_matrices(at: Layout) -> list[Matrix]:
    """Those that the first process makes orthogonal, in their order."""
    matrices = at.config.num_layers * at.matrices()
    return [matrices[number] for number in shared_out(matrices, at.processes)[0]]


def shared_out(matrices: list[Matrix], processes: int) -> list[list[int]]:
    """The numbers of those that each process works on, as `trainer.sharded` shares them out, which needs torch."""
    cost = [rows * columns * min(rows, columns) for rows, columns in matrices]
    works_on: list[list[int]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]  # a heap
    for number in sorted(range(len(matrices)), key=lambda number: -cost[number]):
        load, least = loads[0]
        works_on[least].append(number)
        heapq.heapreplace(loads, (load + cost[number], least))
    return works_on


def _muon_bytes(at: Layout) -> Iterator[int]:
    """At each moment of an update. The gradients ahead of the momentum are there at all of them."""
    ahead, mine = MASTER * at.held_matrix_numbers(), own_matrices(at)
    worked = MASTER * sum(rows * columns for rows, columns in mine)
    alone = at.processes == 1
    received = 0 if alone else 2 * worked  # as they came, and put together
    done = 0
    for matrix in mine:
        yield ahead + received + done + _orthogonal_bytes(at, matrix)
        done += MASTER * matrix[0] * matrix[1]
    if not alone:
        yield 2 * ahead + worked  # what is handed out and taken in
        yield ahead + received + done + MASTER * (_handed_out(at) + max(at.held_matrix_numbers(), _copied(at)))
    yield 2 * ahead + 2 * MASTER * at.largest_held_matrix()  # weight by weight, before and after


def _orthogonal_bytes(at: Layout, matrix: Matrix) -> int:
    """While one matrix is made orthogonal: it and its square, before and after an iteration, or the result."""
    less, more = sorted(matrix)
    one = at.compute * (less * more + less**2)
    return max(2 * one, one + MASTER * less * more) if at.compute != MASTER else 2 * one


def _copies(at: Layout, index: int) -> int:
    """Processes that hold the same part of a block's matrix: replicas, and those that hold key heads whole."""
    keys = index in (1, 2) and at.config.num_kv_heads % at.axes["tensor"] > 0
    return at.axes["replica"] * (at.axes["tensor"] if keys else 1)


def _handed_out(at: Layout) -> int:
    """Numbers of results that the process sends, to each its part."""
    return sum(rows * columns * _copies(at, index) for index, (rows, columns) in _own_by_index(at))


def _copied(at: Layout) -> int:
    """Those of them that do not lie together: results of matrices with more rows than columns lie column by column."""
    by_columns = (3, 6) if at.axes["tensor"] > 1 else ()
    return sum(
        rows * columns * _copies(at, index)
        for index, (rows, columns) in _own_by_index(at)
        if rows > columns or index in by_columns
    )


def _own_by_index(at: Layout) -> list[tuple[int, Matrix]]:
    """The process's matrices, each with its place in a block."""
    matrices = at.matrices()
    numbers = shared_out(at.config.num_layers * matrices, at.processes)[0]
    return [(number % len(matrices), matrices[number % len(matrices)]) for number in numbers]

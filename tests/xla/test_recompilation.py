"""Promises of `Program`: one program for each set of shapes, and any other is refused before it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_xla.debug.metrics as counted
from torch import Tensor

from conf.schema import Job
from trainer.backend.xla import Xla
from trainer.backend.xla.program import RecompiledError

pytestmark = pytest.mark.xla


def compilations() -> int:
    return int(counted.counter_value("UncachedCompile") or 0)


@pytest.fixture(scope="module")
def backend() -> Xla:
    job = Job()
    job.mesh.fsdp, job.micro_batch = 4, 1
    return Xla(job)


@pytest.fixture(scope="module")
def rows(backend: Xla) -> Callable[[int], Tensor]:
    return lambda size: torch.arange(float(size)).to(backend.device)


def refused(program: Callable[..., Any], *arguments: object) -> str:
    """What it says instead of being compiled."""
    before = compilations()
    with pytest.raises(RecompiledError) as error:
        program(*arguments)
    assert compilations() == before
    return str(error.value)


def test_a_number_that_changes_is_refused_and_named(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    def scaled(x: Tensor, by: float) -> Tensor:
        return x.sin() * by

    program = backend.compile(scaled)
    x = rows(8)
    assert torch.equal(program(x, 0.375).cpu(), torch.arange(8.0).sin() * 0.375)
    said = refused(program, x, 0.625)
    assert "scaled is another program than before" in said
    assert "constant(0.375)" in said
    assert "constant(0.625)" in said
    assert "must be a tensor of at least one dimension" in said


def test_a_branch_that_is_taken_otherwise_is_refused(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    def branched(x: Tensor, down: bool) -> Tensor:
        return x.cos() if down else x.tanh()

    program = backend.compile(branched)
    x = rows(8)
    program(x, True)
    said = refused(program, x, False)
    assert "branched" in said
    assert "cosine(" in said
    assert "tanh(" in said


def test_a_longer_program_is_refused(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    def repeated(x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = x.exp()
        return x

    program = backend.compile(repeated)
    program(rows(8), 1)
    assert "repeated is another program" in refused(program, rows(8), 3)


def test_the_same_program_goes_on_after_a_refusal(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    def shifted(x: Tensor, by: float) -> Tensor:
        return x + by

    program = backend.compile(shifted)
    program(rows(8), 2.5)
    refused(program, rows(8), 3.5)
    before = compilations()
    got = program(rows(8), 2.5)
    assert compilations() == before
    assert torch.equal(got.cpu(), torch.arange(8.0) + 2.5)


def test_an_operation_more_is_named(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    """Also one that an argument still waits for, although every name behind it is another one then."""

    def both(x: Tensor) -> Tensor:
        return x.sin() * x.cos()

    program = backend.compile(both)
    program(rows(8))
    assert "sine(" in refused(program, rows(8).tanh()).split(" was expected and ")[0]
    assert "tanh(" in refused(program, rows(8).tanh()).split(" was expected and ")[1]


def test_other_values_shapes_and_dtypes_are_not_refused(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    """Each shape is compiled at its first use, whatever comes between."""

    def doubled(xs: list[Tensor]) -> Tensor:
        return torch.cat([x * 2 for x in xs])

    program = backend.compile(doubled)
    for _ in range(2):
        for arguments in ([rows(8)], [rows(16)], [rows(8), rows(8)], [rows(8).to(torch.int32)]):
            expected = torch.cat([x.cpu() * 2 for x in arguments])
            before = compilations()
            got = program(arguments)
            made = compilations() - before
            assert torch.equal(got.cpu(), expected)
    assert made == 0


def test_a_number_handed_over_as_a_tensor_may_change(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    def scaled(x: Tensor, by: Tensor) -> Tensor:
        return x * by[0]

    program = backend.compile(scaled)
    x = rows(8)
    for by in (0.5, 3.0, 7.0):
        assert torch.equal(program(x, torch.tensor([by]).to(backend.device)).cpu(), torch.arange(8.0) * by)


def test_a_scan_that_reads_what_it_was_not_given_is_refused(backend: Xla, rows: Callable[[int], Tensor]) -> None:
    """Found by another way it would keep its memory when a program is done with it."""
    from trainer.backend.xla.scan import scan

    hidden, stack = rows(4), torch.ones(3, 4).to(backend.device)

    def body(
        carry: list[Tensor], slices: list[list[Tensor]], _: list[Tensor]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        return [hidden * carry[0] + slices[0][0]], [[]]

    with pytest.raises(RuntimeError):
        scan(body, [rows(4)], [stack], [], 1, 3)
    (out,), _ = scan(body, [rows(4)], [stack], [], 1, 3, reads=[hidden])
    expected = torch.arange(4.0)
    for _ in range(3):
        expected = torch.arange(4.0) * expected + 1
    assert torch.equal(out.cpu(), expected)

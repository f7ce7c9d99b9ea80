"""Promises of the program of a training step: what it moves between chips, in which numbers, and what never exists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import prod

import pytest

from conf.schema import Job
from tests.trainer.twins import config_of
from trainer.backend.xla.backend import Chips
from trainer.backend.xla.vocabulary import LOGITS
from trainer.model import GemmaConfig
from trainer.plan.tpu import hlo, step
from trainer.plan.tpu.compiler import Program
from trainer.plan.tpu.traffic import Exchange, exchanges

pytestmark = pytest.mark.xla

LAYERS, D, D_FF, Q, KV, WORDS = 8, 48, 80, 64, 32, 256  # 8 layers are two periods of 3 and 2 behind them
WEIGHTS = {(Q, D): 1, (KV, D): 2, (D, Q): 1, (D_FF, D): 2, (D, D_FF): 1}  # shapes of q, k and v, o, gate and up, down


def traced(
    *,
    mesh: tuple[int, int, int] = (1, 4, 1),
    remat: str = "block",
    reduce: str = "fp32",
    micro_batches: int = 1,
    rows: int = 2,
    positions: int = 24,
    config: GemmaConfig | None = None,
) -> Program:
    """Of a Gemma 3 on four chips that are not there."""
    job = Job()
    job.precision, job.remat, job.micro_batch, job.mesh.reduce_dtype = "bf16", remat, rows, reduce
    job.mesh.replica, job.mesh.fsdp, job.mesh.tensor = mesh
    job.data.sequence_length, job.tokens_per_step = positions, positions * rows * mesh[0] * mesh[1] * micro_batches
    config = config or config_of(3, num_layers=LAYERS, pattern=("local", "local", "global"))
    return step.traced(job, config, Chips(4, tpu=False, described=True), micro_batches)


def moved(program: Program) -> list[Exchange]:
    text = re.sub(r"(?m)^(ENTRY )?(\S+) \{$", r"\1\2 () {", program.hlo)  # computations as a compiler would print them
    found = exchanges(hlo.parse(text))
    assert all(one.times is not None for one in found)
    return found


def shape_of(exchange: Exchange) -> tuple[str, tuple[int, ...]]:
    """Type and shape of what a chip puts in."""
    found = re.fullmatch(r"(\w+)\[([\d,]*)\]", exchange.shapes)
    assert found, exchange
    return found[1], tuple(int(size) for size in found[2].split(",") if size)


def count(exchanges: list[Exchange], kind: str) -> Counter[tuple[str, tuple[int, ...]]]:
    """How often what is moved so, by type and shape."""
    counted: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for one in exchanges:
        if one.kind == kind:
            counted[shape_of(one)] += one.times or 0
    return counted


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("remat", ["block", "selective"])
def test_each_weight_is_cast_gathered_twice_a_pass_and_its_gradient_summed_once(remat: str, micro_batches: int) -> None:
    """Layers in the loop and those behind it; the embedding, which serves both ends, once."""
    found = moved(traced(remat=remat, micro_batches=micro_batches))
    times = LAYERS * micro_batches
    shards = {(shape[0] // 4, shape[1]): number for shape, number in WEIGHTS.items()}
    gathers = {("bf16", shape): 2 * number * times for shape, number in shards.items()}
    gathers["bf16", (WORDS // 4, D)] = micro_batches
    assert count(found, "all-gather") == gathers
    sums = Counter({("f32", shape): number * times for shape, number in WEIGHTS.items()})
    sums["f32", (WORDS, D)] += 2 * micro_batches  # as a table of rows that are looked up, and as what makes logits
    assert count(found, "reduce-scatter") == sums


@pytest.mark.parametrize("reduce", ["fp32", "bf16"])
def test_gradients_are_summed_in_the_dtype_that_is_asked_for(reduce: str) -> None:
    """Over the fsdp axis, and over replicas: also those of norms. float32 stays what is no gradient: loss and norm."""
    found = moved(traced(mesh=(2, 2, 1), reduce=reduce))
    dtype = {"fp32": "f32", "bf16": "bf16"}[reduce]
    assert {kind for kind, _ in count(found, "reduce-scatter")} == {dtype}
    gradients = [shape_of(one) for one in found if one.kind == "all-reduce" and shape_of(one)[1] not in ((), (1,))]
    assert len(gradients) == 15  # each parameter, of all layers together
    assert {kind for kind, _ in gradients} == {dtype}


def test_tensor_axis_moves_activations_in_the_compute_dtype() -> None:
    found = moved(traced(mesh=(1, 2, 2)))
    rows, positions = 2, 24
    own, whole = ("bf16", (rows, positions // 2, D)), ("bf16", (rows, positions, D))
    gathers, scatters = count(found, "all-gather"), count(found, "reduce-scatter")
    assert {kind for kind, _ in gathers} <= {"bf16", "f32"}
    statistics = {shape for kind, shape in gathers if kind == "f32"}
    assert statistics <= {(1, rows * positions), (rows * positions,)}  # of the loss
    # Before and behind attention and feed-forward, forward and again in backward; there also their gradients.
    assert gathers[own] >= 4 * LAYERS
    assert scatters[whole] >= 4 * LAYERS


def tensors(text: str) -> Iterator[int]:
    """Numbers in each tensor of a program."""
    for dimensions in set(re.findall(r"\b(?:bf16|f32|s32|s64|pred)\[([\d,]+)\]", text)):
        yield prod(map(int, dimensions.split(",")))


@pytest.mark.parametrize("mesh", [(1, 4, 1), (1, 1, 4)])
def test_logits_never_exist(mesh: tuple[int, int, int]) -> None:
    rows, positions, words = 128, 128, 2**16
    config = config_of(2, num_layers=2, vocab_size=words, num_heads=4, num_kv_heads=1, d_model=32, d_ff=32)
    step = traced(mesh=mesh, rows=rows, positions=positions, config=config)
    tokens = rows * positions  # of a chip
    assert max(tensors(step.hlo)) <= LOGITS
    assert tokens * words // mesh[2] >= 4 * LOGITS


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_parameters_and_moments_are_given_up_to_the_outputs_that_replace_them(micro_batches: int) -> None:
    step = traced(micro_batches=micro_batches)
    parameters = 2 + 13  # embedding, last norm, and those of a layer
    assert len(step.donated) == 4 * parameters  # themselves, two moments and the number of updates
    assert len(set(step.donated.values())) == len(step.donated)
    layout = step.hlo[step.hlo.index("entry_computation_layout={(") :]
    before, after = (
        hlo.elements(re.sub(r"/\*.*?\*/", "", one))
        for one in (
            f"({hlo.between(layout, layout.index('('), '()')})",
            f"({hlo.between(layout, layout.index('->(') + 2, '()')})",
        )
    )
    for output, parameter in step.donated.items():
        assert after[output] == before[parameter]

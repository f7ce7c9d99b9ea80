"""Promises across worlds: how many processes share a step, and how, changes nothing but the time it takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipeline.stream import TokenStream

# What may differ is the order in which float32 sums are formed: 1e-5 is about a hundred roundings.
EXACT = 1e-5
# bfloat16 rounds to 8 bits, 2^-9 relative on average per value; the loss averages hundreds of tokens of it.
ROUNDED = 2**-8

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer")


@pytest.fixture(scope="module")
def others(shared_lab, alone, pair):
    """The same 20 steps on other worlds."""
    return {
        "pair": pair,
        "torchrun": shared_lab.train("torchrun", launcher=TORCHRUN),
        "four": shared_lab.train("four", processes=4),
        "hsdp": shared_lab.train("hsdp", "mesh.replica=2", "mesh.fsdp=2", processes=4),
        "tensor": shared_lab.train("tensor", "mesh.fsdp=2", "mesh.tensor=2", "remat=selective", processes=4),
        "context": shared_lab.train("context", "mesh.context=2", "remat=block", "compile=true", processes=2),
    }


def relative(a: list[float], b: list[float]) -> float:
    return float(np.max(np.abs(np.array(a) / np.array(b) - 1)))


@pytest.mark.parametrize("name", ["pair", "torchrun", "four", "hsdp", "tensor", "context"])
def test_losses_and_gradients_are_those_of_one_process(alone, others, name: str) -> None:
    check_equal(others[name], alone)


@pytest.mark.parametrize(
    "change",
    [
        "micro_batch=12",
        "remat=selective",
        "remat=block",
        "attention=reference",
        "attention=sdpa",
        "compile=true",
        "compile=true remat=selective",
        "optim.offload=true",
    ],
)
def test_how_it_is_computed_changes_nothing(inside, lab, alone, change: str) -> None:
    assert inside("other", *change.split())[0] == 0
    check_equal(lab.run("other"), alone)


def check_equal(other, alone) -> None:
    assert other.column("step") == alone.column("step") == list(range(1, 21))
    assert relative(other.column("loss"), alone.column("loss")) <= EXACT
    assert relative(other.column("grad_norm"), alone.column("grad_norm")) <= EXACT
    assert other.column("tokens_seen") == alone.column("tokens_seen")


@pytest.mark.parametrize("name", ["pair", "four", "hsdp", "tensor", "context"])
def test_final_parameters_are_those_of_one_process(alone, others, name: str) -> None:
    ours = others[name].tensors()
    for tensor, expected in alone.tensors().items():
        assert (ours[tensor] - expected).norm() <= EXACT * expected.norm(), tensor


def test_processes_are_what_was_asked(others) -> None:
    said = {name: running.events[0]["processes"] for name, running in others.items()}
    assert said == {"pair": 2, "torchrun": 2, "four": 4, "hsdp": 4, "tensor": 4, "context": 2}


def test_every_token_weighs_the_same_on_ragged_ranks(shared_lab, alone, others) -> None:
    """With one document a row the processes hold unequal numbers of tokens; a mean of their means would be another."""
    job = shared_lab.job("alone")
    stream = TokenStream(job.data.manifest, sequence_length=64, packing="pad", window_blocks=2, seed=0)
    for world in (2, 4):
        weights = np.zeros(world)
        for rank in range(world):
            batches = stream.batches(rows_per_step=12, micro_batch=3, rank=rank, world=world)
            weights[rank] = sum(next(batches).weights_BS.sum().item() for _ in range(12 // (3 * world)))
            batches.close()
        assert weights.max() > 1.05 * weights.min()
        assert weights.sum() == alone.metrics[0]["tokens_seen"]


def test_bf16_stays_close_to_fp32(inside, lab, alone) -> None:
    pair = lab.train("pair", "precision=bf16", processes=2)
    tensor = lab.train("tensor", "precision=bf16", "mesh.tensor=2", processes=2)
    assert inside("rounded", "precision=bf16", "mesh.reduce_dtype=bf16")[0] == 0
    for run in (pair, tensor, lab.run("rounded")):
        assert np.isfinite(run.column("loss") + run.column("grad_norm")).all()
        assert 0 < relative(run.column("loss"), alone.column("loss")) <= ROUNDED
        assert all(tensor.dtype == torch.float32 for tensor in run.tensors().values())  # the masters

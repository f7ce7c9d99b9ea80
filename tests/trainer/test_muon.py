"""Promises of Muon: torch's update on one process, the same on every mesh, and state that a restart keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import Job, Optim
from trainer import checkpoint
from trainer.model import Gemma, build_config
from trainer.optim.muon import orthogonal
from trainer.optim.optimizer import build_optimizer, decays, set_lr, skip_where
from trainer.sharded import _shared_out

# Sums of float32 in another order; the bar of every mesh.
EXACT = 1e-5
MUON = ("optim=muon", "optim.peak_lr=3e-3")


@given(
    rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 99), scale=st.sampled_from([1e-6, 1, 1e6])
)
@settings(deadline=None)  # a busy machine is no fault
def test_singular_values_come_near_one_and_vectors_stay(rows: int, columns: int, seed: int, scale: float) -> None:
    """A matrix of known singular values, the least a hundredth of the largest: the polynomial must bring all up."""
    draw = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=draw))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, generator=draw))[0]
    values = torch.logspace(-2, 0, rank) * scale
    made = orthogonal(left @ values.diag() @ right.T, torch.float32)
    inner = left.T @ made @ right  # diagonal, if the singular vectors are those of the matrix
    assert (made - left @ inner @ right.T).norm() <= 1e-3 * made.norm()
    assert (inner - inner.diagonal().diag()).norm() <= 1e-3 * inner.norm()
    assert inner.diagonal().min() >= 0.6
    assert inner.diagonal().max() <= 1.3


def small_model() -> Gemma:
    job = Job()
    job.model.num_layers, job.model.d_model, job.model.d_ff, job.model.head_dim = 2, 32, 48, 16
    model = Gemma(build_config(job.model, 256))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=draw)
    return model


def give_gradients(model: Gemma, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def test_updates_are_those_of_torch_muon_and_adamw() -> None:
    """Torch's own Muon computes its products in bf16 and knows no shards; ours in bf16 differs from it in no bit."""
    ours, theirs = small_model(), small_model()
    optim = Optim(name="muon", weight_decay=0.3, momentum=0.9)
    made = build_optimizer(ours, optim, "bf16")
    named = dict(theirs.named_parameters())
    matrices = [parameter for name, parameter in named.items() if decays(name)]
    rest = [parameter for name, parameter in named.items() if not decays(name)]
    plain = [
        torch.optim.Muon(
            matrices, lr=1e-2, weight_decay=0.3, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True),
    ]
    set_lr(made, 1e-2)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for optimizer in (made, *plain):
            optimizer.step()
    for name, parameter in ours.named_parameters():
        # Two roundings of float32 a step: torch scales and subtracts in another order.
        assert (parameter - named[name]).abs().max() <= 3 * 2 * 2**-24 * parameter.abs().max(), name


def test_in_fp32_the_products_are_not_rounded_to_bf16() -> None:
    """bf16 rounds to 2^-9; what is left of that after five iterations shows where precision is fp32 and must not."""
    matrix = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    exact = orthogonal(matrix.double(), torch.float64)
    assert (orthogonal(matrix, torch.float32) - exact).abs().max() <= 1e-5
    assert (orthogonal(matrix, torch.bfloat16) - exact).abs().max() > 1e-4


def test_a_skipped_update_leaves_every_bit() -> None:
    model = small_model()
    optimizer = build_optimizer(model, Optim(name="muon"))
    give_gradients(model, 0)
    optimizer.step()
    before = [tensor.clone() for tensor in everything(model, optimizer)]
    give_gradients(model, 1)
    next(model.parameters()).grad[0] = float("nan")
    model.blocks[0].attention.q.weight.grad[0, 0] = float("inf")
    skip_where(optimizer, torch.ones(()))
    optimizer.step()
    for tensor, was in zip(everything(model, optimizer), before, strict=True):
        assert torch.equal(tensor, was)
    give_gradients(model, 2)
    skip_where(optimizer, torch.zeros(()))
    optimizer.step()
    assert not torch.equal(everything(model, optimizer)[1], before[1])


def everything(model: Gemma, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    parameters = list(model.parameters())
    return parameters + [tensor for p in parameters for tensor in optimizer.state[p].values()]


@given(shapes=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), max_size=30), size=st.integers(1, 8))
@settings(deadline=None)
def test_every_matrix_has_one_process_and_none_has_much_more_than_its_share(shapes, size: int) -> None:
    works_on = _shared_out([torch.Size(shape) for shape in shapes], size)
    assert sorted(n for numbers in works_on for n in numbers) == list(range(len(shapes)))
    cost = [rows * columns * min(rows, columns) for rows, columns in shapes]
    load = [sum(cost[n] for n in numbers) for numbers in works_on]
    assert max(load) <= sum(cost) / size + max(cost, default=0)


@pytest.fixture(scope="module")
def alone_with_muon(shared_lab):
    return shared_lab.train("muon", *MUON)


def test_an_update_has_the_size_that_moonlight_gives_it() -> None:
    """0.2 of the learning rate, in the root of the mean square, as AdamW's has over a run, whatever the shape."""
    model = small_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, Optim(name="muon", weight_decay=0.0))
    set_lr(optimizer, 1e-2)
    give_gradients(model, 0)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if decays(name):
            size = (parameter - before[name]).square().mean().sqrt().item()
            assert 0.7 * 0.2e-2 <= size <= 1.2 * 0.2e-2, name  # singular values are 0.7 to 1.2


def test_it_learns(alone_with_muon) -> None:
    losses = alone_with_muon.column("loss")
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [(2, ()), (4, ("mesh.replica=2", "mesh.fsdp=2")), (2, ("mesh.tensor=2",)), (3, ("micro_batch=2",))],
)
def test_runs_on_other_worlds_are_those_of_one_process(lab, alone_with_muon, processes: int, mesh) -> None:
    ours = lab.train("other", *MUON, *mesh, processes=processes)
    for name in ("loss", "grad_norm"):
        assert ours.column(name) == pytest.approx(alone_with_muon.column(name), rel=EXACT)
    tensors = ours.tensors()
    for name, expected in alone_with_muon.tensors().items():
        assert (tensors[name] - expected).norm() <= EXACT * expected.norm(), name


def test_it_keeps_one_moment_of_matrices_and_two_of_the_rest(alone_with_muon) -> None:
    found = checkpoint.find(alone_with_muon.folder / "checkpoints")
    names = {name.split(".", 2)[1]: set() for name in found.tensors if name.startswith("optimizer.")}
    for name in found.tensors:
        if name.startswith("optimizer."):
            _, moment, parameter = name.split(".", 2)
            names[moment].add(parameter)
    assert names.keys() == {"momentum", "exp_avg", "exp_avg_sq"}
    assert names["exp_avg"] == names["exp_avg_sq"]
    assert not names["exp_avg"] & names["momentum"]
    assert names["exp_avg"] | names["momentum"] == {n[6:] for n in found.tensors if n.startswith("model.")}
    assert "embedding.weight" in names["exp_avg"]


def test_resume_is_exact_and_on_another_mesh_close(lab, alone_with_muon) -> None:
    half = lab.start("half", *MUON, "steps=20", "checkpoint.every=9")
    half.until(lambda: (half.folder / "checkpoints" / "step-00000009" / "COMMIT").exists(), "step 9")
    half.process.kill()
    half.wait()
    lab.copy(half, "shared")
    resumed, shared = lab.train("half", *MUON), lab.train("shared", *MUON, "mesh.tensor=2", processes=2)
    assert resumed.column("loss") == alone_with_muon.column("loss")
    expected = alone_with_muon.tensors()
    for name, tensor in resumed.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in shared.tensors().items():
        assert (tensor - expected[name]).norm() <= EXACT * expected[name].norm(), name


def test_another_optimizer_is_another_run(inside, lab, alone_with_muon) -> None:
    lab.copy(alone_with_muon, "changed")
    code, said = inside("changed", "optim=adamw", "steps=25")
    assert code == 78
    assert "optim.name: 'muon' there, 'adamw' here" in said

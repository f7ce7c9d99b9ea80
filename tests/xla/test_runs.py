"""Promises of training on xla: a restart changes no bit, and a checkpoint belongs to no mesh and no backend."""

from __future__ import annotations

import signal
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.trainer.conftest import Lab, Recorded, Running
from trainer import checkpoint

pytestmark = pytest.mark.xla

EXACT = 1e-5  # float32 sums in another order
# 130 is no multiple of the chips, so that rows fill the last shards, and three layers none of the pattern of two.
MODEL = ("model.d_ff=130", "model.num_layers=3", "optim.eps=1e-5")
KEPT = ("optim.ema=0.5", "checkpoint.every=10", "checkpoint.keep_last=100")
XLA = ("backend=xla", "mesh.fsdp=4")
TENSOR = ("backend=xla", "mesh.fsdp=2", "mesh.tensor=2")
REPLICA = ("backend=xla", "mesh.replica=2", "mesh.fsdp=2", "micro_batch=1")  # three passes
COLUMNS = ("step", "loss", "grad_norm", "tokens_seen", "learning_rate", "samples_done")


def start(lab: Lab, name: str, *changes: str) -> Running:
    return lab.start(name, lab.corpus.held_out, "evaluate.every=5", "evaluate.rows=17", *MODEL, *KEPT, *changes)


def train(lab: Lab, name: str, *changes: str) -> Running:
    running = start(lab, name, *changes).wait()
    assert running.code == 0, running.said
    return running


@pytest.fixture(scope="module")
def whole(shared_lab: Lab) -> Running:
    """20 steps on four chips, never interrupted. Nobody changes it."""
    return train(shared_lab, "whole", *XLA)


@pytest.fixture(scope="module")
def native(shared_lab: Lab) -> Running:
    """The same on a native process."""
    return train(shared_lab, "native")


@pytest.fixture(scope="module")
def stopped(shared_lab: Lab) -> Running:
    """The same on four chips, asked to stop on its way."""
    running = start(shared_lab, "stopped", *XLA)
    running.until_step(2)
    running.process.send_signal(signal.SIGTERM)
    return running.wait()


def half(lab: Lab, source: Recorded, name: str) -> None:
    """A copy of a run as it stood after step 10."""
    lab.copy(source, name)
    (lab.folder / "runs" / name / "checkpoints" / checkpoint.step_name(20) / "COMMIT").unlink()


def committed(running: Recorded, step: int | None = None) -> checkpoint.Committed:
    found = checkpoint.find(running.folder / "checkpoints", step)
    assert found is not None
    return found


def state_of(running: Recorded) -> dict[str, object]:
    return {key: value for key, value in committed(running).state.items() if key != "origin"}  # that is the run's id


def held_out(running: Recorded) -> list[float]:
    losses = {line["step"]: line["held_out_loss"] for line in running.metrics if "held_out_loss" in line}
    assert list(losses) == [5, 10, 15, 20]
    return list(losses.values())


def check_close(ours: Recorded, theirs: Recorded) -> None:
    assert ours.column("step") == list(range(1, 21))
    for name in ("loss", "grad_norm"):
        assert ours.column(name) == pytest.approx(theirs.column(name), rel=EXACT)
    for name in ("tokens_seen", "learning_rate", "samples_done"):
        assert ours.column(name) == theirs.column(name)
    assert held_out(ours) == pytest.approx(held_out(theirs), rel=EXACT)
    tensors, expected = ours.tensors(), theirs.tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (tensors[name] - tensor).norm() <= EXACT * tensor.norm(), name


def test_run_is_that_of_a_native_process(whole: Running, native: Running) -> None:
    """Losses, held-out losses, parameters, moments and averages."""
    check_close(whole, native)
    assert any(name.startswith("ema.") for name in whole.tensors())


def test_a_stop_saves_the_step_it_stands_at(stopped: Running) -> None:
    assert stopped.code == 75, stopped.said
    step = stopped.lines[-1]["step"]
    assert 2 <= step < 20
    assert checkpoint.committed_steps(stopped.folder / "checkpoints")[-1] == step
    assert stopped.events[-1]["event"] == "stop"


def test_resume_is_exact(shared_lab: Lab, whole: Running, stopped: Running) -> None:
    shared_lab.copy(stopped, "resumed")
    resumed = train(shared_lab, "resumed", *XLA)
    step = stopped.lines[-1]["step"]
    assert resumed.column("attempt") == [1] * step + [2] * (20 - step)
    for name in COLUMNS:
        assert resumed.column(name) == whole.column(name), name
    assert held_out(resumed) == held_out(whole)
    ours, theirs = resumed.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name  # also the sign of a zero
    assert state_of(resumed) == state_of(whole)


@pytest.mark.parametrize("changes", [("backend=cpu",), TENSOR, REPLICA], ids=["native", "1x2x2", "2x2x1"])
def test_checkpoint_goes_on_elsewhere(shared_lab: Lab, whole: Running, changes: tuple[str, ...]) -> None:
    name = "from-whole-" + "-".join(changes).replace("=", "")
    half(shared_lab, whole, name)
    resumed = train(shared_lab, name, *changes)
    assert resumed.column("attempt") == [1] * 10 + [2] * 10
    check_close(resumed, whole)


def test_checkpoint_of_a_native_process_goes_on_here(shared_lab: Lab, native: Running) -> None:
    half(shared_lab, native, "from-native")
    resumed = train(shared_lab, "from-native", *XLA)
    assert resumed.column("attempt") == [1] * 10 + [2] * 10
    check_close(resumed, native)


def test_checkpoint_is_named_and_shaped_as_a_native_one(whole: Running, native: Running) -> None:
    assert committed(whole).tensors == committed(native).tensors


def test_checkpoint_holds_each_number_once_and_nothing_that_fills_shards(whole: Running) -> None:
    found = committed(whole)
    stored: dict[str, int] = dict.fromkeys(found.tensors, 0)
    keys: dict[str, set[str]] = {}
    for name, parts in found.parts.items():
        covered = torch.zeros(found.tensors[name]["shape"], dtype=torch.int32)
        for part in parts:
            covered[tuple(slice(at, at + size) for at, size in zip(part.offset, part.shape, strict=True))] += 1
            with safe_open(Path(found.verified(part.file)), framework="pt") as file:
                assert list(file.get_slice(part.key).get_shape()) == part.shape
            stored[name] += prod(part.shape)
            keys.setdefault(part.file, set()).add(part.key)
        assert (covered == 1).all(), name
    assert stored == {name: prod(saved["shape"]) for name, saved in found.tensors.items()}
    for name, named in keys.items():
        with safe_open(Path(found.verified(name)), framework="pt") as file:
            assert set(file.keys()) == named
    down = [part.shape for part in found.parts["model.blocks.0.feed_forward.gate.weight"]]
    assert sorted(shape[0] for shape in down) == [31, 33, 33, 33]  # each chip its own

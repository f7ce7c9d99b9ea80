"""Promises of a restart: whatever ended a run, going on gives what it would have given uninterrupted, bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from trainer import checkpoint


@pytest.fixture(scope="module")
def stopped(shared_lab):
    """A run on one process that was asked to stop on its way."""
    running = shared_lab.start("stopped")
    running.until_step(2)
    running.process.send_signal(signal.SIGTERM)
    return running.wait()


@pytest.fixture(scope="module")
def stopped_pair(shared_lab):
    running = shared_lab.start("stopped_pair", processes=2)
    running.until_step(2)
    running.process.send_signal(signal.SIGTERM)
    return running.wait()


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def state_of(running) -> dict:
    found = checkpoint.find(running.folder / "checkpoints")
    assert found is not None
    return {key: value for key, value in found.state.items() if key != "origin"}  # that is the run's own id


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Inode, time of change and bytes of every file below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in paths}


@pytest.mark.parametrize("name", ["stopped", "stopped_pair"])
def test_a_stop_saves_the_step_it_stands_at(request, name: str) -> None:
    running = request.getfixturevalue(name)
    assert running.code == 75, running.said
    step = running.lines[-1]["step"]
    assert 2 <= step < 20
    assert checkpoint.committed_steps(running.folder / "checkpoints") == [step]
    assert [event["event"] for event in running.events] == ["start", "checkpoint", "stop"]
    assert f"stopping after step {step}, as asked" in running.said


def test_a_signal_to_the_whole_group_leaves_the_data_workers_alive(shared_lab) -> None:
    """Schedulers and keyboards signal every process of a job; the trainer still needs its workers while it stops."""
    running = shared_lab.start("group", "data.workers=2", "steps=100000")
    running.until_step(2)
    os.killpg(running.process.pid, signal.SIGTERM)
    assert running.wait().code == 75, running.said
    assert checkpoint.committed_steps(running.folder / "checkpoints") == [running.lines[-1]["step"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact(shared_lab, alone, stopped, workers: int) -> None:
    name = f"resumed_workers_{workers}"
    shared_lab.copy(stopped, name)
    step = stopped.lines[-1]["step"]
    committed = shared_lab.folder / "runs" / name / "checkpoints" / checkpoint.step_name(step)
    before = files(committed)
    resumed = shared_lab.train(name, f"data.workers={workers}")
    assert [line["attempt"] for line in resumed.lines] == [1] * step + [2] * (20 - step)
    for column in ("step", "loss", "grad_norm", "tokens_seen", "learning_rate"):
        assert resumed.column(column) == alone.column(column), column
    assert bits(resumed.tensors()) == bits(alone.tensors())
    assert state_of(resumed) == state_of(alone)
    assert files(committed) == before  # no file of a committed step is written again


def test_resume_is_exact_on_two_processes(shared_lab, pair, stopped_pair) -> None:
    shared_lab.copy(stopped_pair, "resumed_pair")
    resumed = shared_lab.train("resumed_pair", processes=2)
    assert resumed.column("loss") == pair.column("loss")
    assert resumed.column("grad_norm") == pair.column("grad_norm")
    assert bits(resumed.tensors()) == bits(pair.tensors())


@pytest.mark.parametrize(
    ("source", "processes", "changes"),
    [
        ("stopped", 2, ("mesh.replica=2", "mesh.fsdp=1")),
        ("stopped", 2, ("mesh.tensor=2",)),
        ("stopped_pair", 4, ("mesh.context=2",)),
        ("stopped_pair", 3, ("micro_batch=2",)),  # a third of 64 rows is no whole number
    ],
)
def test_resume_on_another_world(request, shared_lab, alone, source: str, processes: int, changes) -> None:
    name = "-".join(["from", source, "to", str(processes), *changes]).replace("=", "")
    shared_lab.copy(request.getfixturevalue(source), name)
    check_close(shared_lab.train(name, *changes, processes=processes), alone)


def test_resume_of_two_processes_on_one(inside, lab, alone, stopped_pair) -> None:
    lab.copy(stopped_pair, "fewer")
    assert inside("fewer")[0] == 0
    check_close(lab.run("fewer"), alone)


def check_close(resumed, alone) -> None:
    assert resumed.column("step") == list(range(1, 21))
    assert resumed.column("loss") == pytest.approx(alone.column("loss"), rel=1e-5)
    assert resumed.column("grad_norm") == pytest.approx(alone.column("grad_norm"), rel=1e-5)
    ours = resumed.tensors()
    for tensor, expected in alone.tensors().items():
        assert (ours[tensor] - expected).norm() <= 1e-5 * expected.norm(), tensor


def test_a_killed_run_ends_as_if_it_was_never_killed(lab, alone) -> None:
    killed = lab.start("killed", "checkpoint.every=3")
    killed.until_step(5)
    killed.process.kill()
    assert killed.wait().code == -9
    committed = checkpoint.committed_steps(killed.folder / "checkpoints")
    assert committed
    assert committed[-1] < 20
    resumed = lab.train("killed", "checkpoint.every=3")
    assert resumed.folder == killed.folder
    again = [line["step"] for line in resumed.lines if line["attempt"] == 2]
    assert again == list(range(committed[-1] + 1, 21))
    assert resumed.column("attempt") == [1] * committed[-1] + [2] * (20 - committed[-1])  # of equal steps the highest
    assert resumed.column("loss") == alone.column("loss")
    assert bits(resumed.tensors()) == bits(alone.tensors())


def test_a_finished_run_stays_as_it_is(inside, lab, alone) -> None:
    lab.copy(alone, "finished")
    folder = lab.folder / "runs" / "finished"
    before = files(folder / "checkpoints")
    metrics = (folder / "metrics.jsonl").read_bytes()
    assert inside("finished")[0] == 0
    assert files(folder / "checkpoints") == before
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_a_decay_can_be_planned_from_a_checkpoint_of_a_constant_rate(inside, lab) -> None:
    """The learning rates are those of the formula, and the run is the one that had planned it from the start."""
    decay = ("optim.schedule=wsd", "steps=12", "optim.decay_steps=4", "optim.final_lr_ratio=0")
    assert inside("stable", "optim.schedule=constant", "steps=8")[0] == 0
    (lab.folder / "runs" / "stable" / ".lock").unlink()  # a lock ends with its process, and this one goes on
    code, said = inside("stable", *decay)
    assert code == 0, said
    assert inside("planned", *decay)[0] == 0
    run, planned = lab.run("stable"), lab.run("planned")
    rates = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]  # of 3e-3: four steps of warm-up, four of decay
    assert run.column("learning_rate") == pytest.approx([3e-3 * rate for rate in rates], rel=1e-12, abs=1e-18)
    assert run.column("attempt") == [1] * 8 + [2] * 4
    assert run.column("loss") == planned.column("loss")
    assert bits(run.tensors()) == bits(planned.tensors())
    changed = {event["key"]: (event["was"], event["now"]) for event in run.events if event["event"] == "changed"}
    assert changed == {
        "optim.schedule": ("constant", "wsd"),
        "steps": (8, 12),
        "optim.decay_steps": (None, 4),
        "optim.final_lr_ratio": (0.1, 0.0),
    }
    (run.folder / ".lock").unlink()
    code, said = inside("stable", "optim.schedule=cosine", "steps=14")
    assert code == 78
    assert "optim.schedule: 'constant or wsd' there, 'cosine' here" in said

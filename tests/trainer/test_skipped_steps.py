"""Promises of a step whose loss or gradient is not finite: its update is left out everywhere, and all else goes on."""

from __future__ import annotations

import pytest
import torch

from trainer import checkpoint

EVERY = ("checkpoint.every=1", "checkpoint.keep_last=100", "optim.schedule=constant", "optim.ema=0.5")


@pytest.fixture(scope="module")
def train(shared_lab):
    """Train with some steps poisoned, on one process or two. Gives the run, ended."""

    def run(run_id: str, poisoned: str, *changes: str, processes: int = 1):
        plain = shared_lab.environment
        shared_lab.environment = plain | {"POISONED": poisoned}
        try:
            return shared_lab.end(run_id, *EVERY, *changes, processes=processes, work="tests.trainer.poisoned:as_rank")
        finally:
            shared_lab.environment = plain

    return run


def bits(running, step: int) -> dict[str, bytes]:
    found = checkpoint.find(running.folder / "checkpoints", step)
    assert found is not None
    return {name: checkpoint.read_tensor(found, name).numpy().tobytes() for name in found.tensors}


def state(running, step: int) -> dict:
    found = checkpoint.find(running.folder / "checkpoints", step)
    assert found is not None
    return found.state


@pytest.mark.parametrize(
    ("processes", "what", "optimizer"),
    [(1, "loss", "adamw"), (1, "gradient", "muon"), (2, "loss", "muon"), (2, "gradient", "adamw")],
)
def test_a_poisoned_step_changes_no_tensor_and_a_resume_goes_on_exactly(train, processes: int, what: str, optimizer):
    """Parameters, moments and the average of the weights, and the optimizer's own count of updates."""
    name, chosen = f"{what}-on-{processes}", f"optim={optimizer}"
    whole = train(name, f"6:{what}", chosen, "steps=9", processes=processes)
    ended = train(f"{name}-ended", f"6:{what}", chosen, "steps=6", processes=processes)
    assert (whole.code, ended.code) == (0, 0), whole.said + ended.said

    assert bits(ended, 6) == bits(ended, 5)
    assert bits(ended, 5) != bits(ended, 4)
    assert state(ended, 6)["cursor"]["samples_done"] == 72  # its data is consumed
    assert ended.column("steps_skipped") == whole.column("steps_skipped")[:6] == [0] * 5 + [1]
    assert whole.column("steps_skipped")[6:] == [1, 1, 1]
    line = ended.metrics[5]
    assert line["grad_norm"] is None
    assert (line["loss"] is None) == (what == "loss")
    assert [event["step"] for event in whole.events if event["event"] == "skipped"] == [6]
    assert checkpoint.committed_steps(whole.folder / "checkpoints") == [1, 2, 3, 4, 5, 7, 8, 9]  # put off to 7

    resumed = train(f"{name}-ended", "99:loss", chosen, "steps=9", processes=processes)
    assert resumed.code == 0, resumed.said
    assert resumed.column("loss")[6:] == whole.column("loss")[6:]
    assert bits(resumed, 9) == bits(whole, 9)
    assert resumed.metrics[-1]["steps_skipped"] == 1
    assert state(resumed, 9)["in_a_row"] == 0


def test_processes_skip_alike(train) -> None:
    """The number that is none arises on one of them; all leave the update out, so they still agree with one process."""
    one, two = (train(f"alike-{n}", "3:gradient,4:loss,8:loss", "steps=12", processes=n) for n in (1, 2))
    finite = [step for step in range(12) if step + 1 not in (3, 4, 8)]
    for name in ("loss", "grad_norm"):
        ours, theirs = ([run.column(name)[step] for step in finite] for run in (two, one))
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert one.column("steps_skipped")[-1] == two.column("steps_skipped")[-1] == 3


@pytest.mark.parametrize(("max_skipped", "code"), [(3, 77), (4, 0)])
def test_too_many_in_a_row_end_the_run_and_what_was_saved_stands(train, max_skipped: int, code: int) -> None:
    """Two, then three in a row: only those count that follow each other."""
    name = f"at-most-{max_skipped}"
    changes = ("steps=10", f"optim.max_skipped={max_skipped}", "spike.rollbacks=0")
    running = train(name, "2:loss,3:loss,6:loss,7:loss,8:loss", *changes)
    assert running.code == code, running.said
    saved = checkpoint.committed_steps(running.folder / "checkpoints")
    if code == 0:
        assert saved == [1, 4, 5, 9, 10]
        return
    assert saved == [1, 4, 5]
    assert running.column("step") == list(range(1, 9))  # the last one has its line, too
    assert f"step 8 of {name} has loss=inf" in running.said
    assert "as the last of 3 steps in a row (optim.max_skipped=3): nothing of it was saved" in running.said


def test_a_run_where_nothing_was_skipped_has_the_updates_of_torch_adamw() -> None:
    """To hand a fused AdamW the word that all is well changes no bit."""
    plain, told = (torch.nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2))
    optimizers = [torch.optim.AdamW([parameter], fused=True) for parameter in (plain, told)]
    optimizers[1].found_inf = torch.zeros(())
    for _ in range(3):
        for parameter, optimizer in zip((plain, told), optimizers, strict=True):
            parameter.grad = parameter.detach().sin()
            optimizer.step()
    assert torch.equal(plain, told)

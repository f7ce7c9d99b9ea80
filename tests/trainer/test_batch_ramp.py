"""Promises of a batch size that grows: exact resumes, an `explain` that tells what was fed, and a past that stays."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.stream import TokenStream
from trainer import checkpoint, train

STEPS = 18
RAMP = "batch_ramp=[{from_step:6,tokens_per_step:768},{from_step:13,tokens_per_step:1536}]"  # 6, 12, then 24 rows
SMALL = ("tokens_per_step=384", f"steps={STEPS}")
EVERY = ("checkpoint.every=1", "checkpoint.keep_last=100")
ROWS = [6] * 5 + [12] * 7 + [24] * 6


@pytest.fixture(scope="module")
def ramped(shared_lab):
    """Never interrupted. Nobody changes it."""
    return shared_lab.train("ramped", *SMALL, *EVERY, RAMP)


def go_back(running, step: int) -> None:
    """Let the run stand after a step, as if the later ones had never been saved."""
    for later in range(step + 1, STEPS + 1):
        (running.folder / "checkpoints" / checkpoint.step_name(later) / "COMMIT").unlink()


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_metrics_count_the_rows_of_each_step(ramped) -> None:
    assert ramped.column("samples_done") == np.cumsum(ROWS).tolist()
    for line, rows in zip(ramped.metrics, ROWS, strict=True):
        assert line["tokens_per_second"] == pytest.approx(64 * rows / line["step_seconds"])
    seen = np.diff([0, *ramped.column("tokens_seen")])
    assert all(0 < tokens <= 64 * rows for tokens, rows in zip(seen, ROWS, strict=True))


@pytest.mark.parametrize("step", [3, 5, 9, 12, 15])
def test_resume_within_each_stage_and_at_its_end_is_exact(inside, lab, ramped, step: int) -> None:
    lab.copy(ramped, "again")
    go_back(lab.run("again"), step)
    assert inside("again", *SMALL, *EVERY, RAMP)[0] == 0
    resumed = lab.run("again")
    assert resumed.column("attempt") == [1] * step + [2] * (STEPS - step)
    for name in ("loss", "grad_norm", "tokens_seen", "samples_done", "learning_rate"):
        assert resumed.column(name) == ramped.column(name), name
    assert equal(resumed.tensors(), ramped.tensors())


def test_two_processes_with_workers_take_the_same_steps(lab, ramped) -> None:
    other = lab.train("other", *SMALL, RAMP, "data.workers=2", processes=2)
    assert other.column("loss") == pytest.approx(ramped.column("loss"), rel=1e-5)
    assert other.column("tokens_seen") == ramped.column("tokens_seen")


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> dict[int, np.ndarray]:
    """The tokens of every step that is trained on in this process, by the number of the step's last sample."""
    seen: dict[int, np.ndarray] = {}
    make_train_step = train.make_train_step

    def recording(*parts: Any):
        train_step = make_train_step(*parts)

        def record(micro_batches, *limits):
            done = micro_batches[-1].cursor.samples_done
            seen[done] = np.concatenate([batch.tokens_BS.numpy() for batch in micro_batches])
            return train_step(micro_batches, *limits)

        return record

    monkeypatch.setattr(train, "make_train_step", recording)
    return seen


def samples_told(command, run: str, step: int) -> list[int]:
    """The samples of a step by `gemcutter explain`, in the order of its rows."""
    code, said, _ = command("explain", run, "--step", step, "--json")
    assert code == 0
    parts = [json.loads(line) for line in said.splitlines()]
    return list(dict.fromkeys(part["sample"] for part in parts))


def test_explain_tells_the_rows_that_were_fed_also_where_steps_were_passed_over(inside, lab, fed, command) -> None:
    code, said = inside("told", *SMALL, RAMP, "steps=8")
    assert code == 0, said
    (lab.folder / "runs" / "told" / ".lock").unlink()  # a lock ends with its process, and this one goes on
    code, _, said = command("skip", "told", "--steps", "9-13")  # from within the second stage into the third
    assert code == 0, said
    (entry,) = [json.loads(line) for line in (lab.folder / "runs" / "told" / "skip.jsonl").read_text().splitlines()]
    before = int(np.sum(ROWS[:8]))
    assert entry["samples"] == [before, before + 4 * 12 + 24]
    code, said = inside("told", *SMALL, RAMP)
    assert code == 0, said

    stream = TokenStream(lab.job("told").data.manifest, sequence_length=64, packing="pad", window_blocks=2, seed=0)
    done = lab.run("told").column("samples_done")
    assert sorted(fed) == done
    for step in range(1, STEPS + 1):
        samples = samples_told(command, "told", step)
        assert len(samples) == ROWS[step - 1]
        assert samples[-1] + 1 == done[step - 1]
        (told,) = stream.build([(samples, 0)], len(samples))
        assert np.array_equal(told.tokens_BS.numpy(), fed[done[step - 1]]), step
    assert samples_told(command, "told", 9)[0] == entry["samples"][1]

    document = json.loads(command("explain", "told", "--step", 14, "--json")[1].splitlines()[0])["document"]
    code, said, _ = command("explain", "told", "--document", document, "--json")
    assert 14 in [json.loads(line)["step"] for line in said.splitlines()]


def test_a_stage_can_be_appended_and_the_past_cannot_change(inside, lab, command) -> None:
    constant = ("optim.schedule=constant",)  # else the rates depend on `steps`
    planned = "batch_ramp=[{from_step:9,tokens_per_step:768}]"
    assert inside("whole", *SMALL, planned, *constant, "steps=12")[0] == 0
    assert inside("grown", *SMALL, *constant, "steps=8")[0] == 0
    (lab.folder / "runs" / "grown" / ".lock").unlink()
    stated = (lab.folder / "runs" / "grown" / "config.yaml").read_bytes()
    code, said = inside("grown", *SMALL, "batch_ramp=[{from_step:8,tokens_per_step:768}]", *constant, "steps=12")
    assert code == 78
    assert (lab.folder / "runs" / "grown" / "config.yaml").read_bytes() == stated  # what explain and skip go by
    assert "batch_ramp differs for the 8 steps that are done: 6 rows from step 1 on there, 6 rows from step 1" in said
    assert "new stages may begin at step 9" in said
    (lab.folder / "runs" / "grown" / ".lock").unlink()
    code, said = inside("grown", *SMALL, planned, *constant, "steps=12")
    assert code == 0, said
    grown, whole = lab.run("grown"), lab.run("whole")
    assert grown.column("samples_done") == whole.column("samples_done")
    assert equal(grown.tensors(), whole.tensors())
    changed = {event["key"]: event["now"] for event in grown.events if event["event"] == "changed"}
    assert changed["batch_ramp"] == [{"from_step": 9, "tokens_per_step": 768}]


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        ("[{from_step:1,tokens_per_step:768}]", "batch_ramp[0].from_step=1 must be at least 2: the first step is 1"),
        (
            "[{from_step:5,tokens_per_step:768},{from_step:5,tokens_per_step:384}]",
            "batch_ramp[1].from_step=5 must be at least 6: stages follow each other",
        ),
        ("[{from_step:5,tokens_per_step:0}]", "batch_ramp[0].tokens_per_step=0 must be greater than 0"),
        (
            "[{from_step:5,tokens_per_step:700}]",
            "batch_ramp[0].tokens_per_step=700 is not a multiple of data.sequence_length=64: use "
            "batch_ramp[0].tokens_per_step=704",
        ),
        (
            "[{from_step:5,tokens_per_step:512}]",
            "micro_batch=3 on 1 processes does not divide the 8 rows of a step (batch_ramp[0].tokens_per_step=512",
        ),
    ],
)
def test_a_ramp_that_cannot_work_is_refused(inside, ramp: str, message: str) -> None:
    code, said = inside("bad", *SMALL, f"batch_ramp={ramp}")
    assert code == 78
    assert message in said

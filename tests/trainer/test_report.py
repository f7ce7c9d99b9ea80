"""Promises of the report: the contract's keys, a stop at numbers that are none, memory that does not grow."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from trainer import checkpoint
from trainer.report import report as reporting
from trainer.report import terminal
from trainer.report.terminal import Terminal
from trainer.tracker import NoTracker

KEYS = {
    "step", "attempt", "time", "loss", "tokens_seen", "learning_rate", "grad_norm", "step_seconds", "data_seconds",
    "tokens_per_second", "mfu", "memory_bytes",
}  # fmt: skip
EXTRAS = {
    "samples_done", "tokens/invented", "planned_tokens/invented", "storage/retries", "storage/refetched",
    "storage/quarantined", "storage/bytes_fetched", "steps_skipped", "goodput",
}  # fmt: skip


def test_every_line_has_the_keys_of_the_contract(alone) -> None:
    assert [line["step"] for line in alone.lines] == list(range(1, 21))
    for line in alone.lines:
        assert set(line) - {"held_out_loss"} == KEYS | EXTRAS
        assert line["mfu"] is None  # the peak of this device is not known
        assert line["attempt"] == 1
        assert 0 <= line["data_seconds"] <= line["step_seconds"]
        assert line["tokens_per_second"] == pytest.approx(768 / line["step_seconds"])
        assert line["memory_bytes"] > 2**20
    times = alone.column("time")
    assert times == sorted(times)
    seen = alone.column("tokens_seen")
    assert all(0 < b - a <= 768 for a, b in zip([0, *seen], seen, strict=False))  # weights, without padding
    assert alone.column("tokens/invented") == seen
    assert alone.column("samples_done") == [12 * step for step in range(1, 21)]
    # One document a row, about half of a mean's length apart: four deviations of the mean of 240 rows.
    assert alone.column("planned_tokens/invented")[-1] == pytest.approx(seen[-1], rel=4 * 0.55 / math.sqrt(240))
    assert alone.column("storage/bytes_fetched")[-1] > 0


def test_it_learns(alone) -> None:
    """From the loss of a uniform guess over the tokenizer's pieces."""
    losses = alone.column("loss")
    assert losses[0] == pytest.approx(math.log(512), rel=0.05)
    assert losses[-1] < losses[0] - 1


def test_the_ledger_and_the_terminal_tell_the_same(alone) -> None:
    assert [event["event"] for event in alone.events] == ["start", "checkpoint", "end"]
    assert alone.events[0]["processes"] == 1
    assert "attempt 1 starts at step 0 on 1 cpu process(es), run directory runs/alone" in alone.said
    assert "step 20/20  loss" in alone.said
    assert "finished step 20" in alone.said


@pytest.mark.parametrize("peak_lr", ["1e9", "1e38"])
def test_divergence_stops_before_it_is_saved(inside, lab, peak_lr: str) -> None:
    wild = (
        f"optim.peak_lr={peak_lr}",
        "optim.warmup_steps=0",
        "optim.max_skipped=4",
        "checkpoint.every=1",
        "spike.rollbacks=0",
    )
    code, said = inside("wild", *wild)
    assert code == 77
    assert "of wild has " in said
    assert "in a row (optim.max_skipped=4): nothing of it was saved" in said
    broken = int(said.rsplit("gemcutter train: step ", 1)[1].split()[0]) - 3
    saved = checkpoint.committed_steps(lab.folder / "runs" / "wild" / "checkpoints")
    assert saved == list(range(1, broken))[-3:]


def test_held_out_loss_is_the_same_for_every_world(alone, pair) -> None:
    assert [line["step"] for line in alone.extras] == [10, 20]
    assert "loss" in alone.extras[0]  # one line a step
    losses = [[line["held_out_loss"] for line in run.extras] for run in (alone, pair)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][1] < losses[0][0] < math.log(512)


def test_memory_does_not_grow_with_steps(lab) -> None:
    """Most memory resident so far, at step 40 and 200 steps later.

    Measured: 2.1 MB more, half of it with the first two checkpoints. The gradients of a step alone are 0.4 MB, so a run
    that kept what a step makes would add more than 80 MB.
    """
    run = lab.train("long", "steps=240", "tokens_per_step=192", "checkpoint.every=80")
    memory = dict(zip(run.column("step"), run.column("memory_bytes"), strict=True))
    assert memory[240] - memory[40] <= 6 * 2**20


def test_a_closed_pipe_ends_nothing(lab) -> None:
    """Whoever reads what training says may be gone, as `tee` is after Ctrl-C; the last save must still be made."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-P", "-m", "trainer", "train", *lab.overrides("unread", "steps=3")]
    done = subprocess.run(command, cwd=lab.folder, env=lab.environment, stderr=writing, timeout=120)
    os.close(writing)
    assert done.returncode == 0
    assert checkpoint.committed_steps(lab.run("unread").folder / "checkpoints") == [3]


class News(NoTracker):
    """A tracker that has something to say in the end, once `closing` has happened."""

    def __init__(self, closing) -> None:
        self.closing, self.closed = closing, False

    def news(self) -> list[dict[str, str]]:
        return [{"state": "behind", "said": "W&B lacks rows"}] if self.closed else []

    def close(self, failed: bool) -> None:
        self.closing()
        self.closed = True


def test_what_ended_a_run_is_told_whatever_fails_in_the_end(inside, lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes no more events when the tracker has closed; before that the run had diverged."""
    events = lab.folder / "runs" / "wild" / "events.jsonl"

    def closing() -> None:
        events.rename(events.with_name("events so far"))
        events.mkdir()

    monkeypatch.setattr(reporting, "open_tracker", lambda *_: News(closing))
    wild = ("optim.peak_lr=1e38", "optim.warmup_steps=0", "optim.max_skipped=2", "spike.rollbacks=0")
    code, said = inside("wild", *wild)
    assert code == 77, said
    assert "runs/wild/events.jsonl cannot be written" in said
    assert "gemcutter train: step " in said


def test_a_report_that_cannot_begin_is_told_to_all(lab) -> None:
    """It begins on the first process only; the other one learns why that ended."""
    (lab.folder / "runs" / "unwritten" / "events.jsonl").mkdir(parents=True)
    run = lab.start("unwritten", "steps=2", processes=2).wait()  # whose store outlives the first process
    assert run.code == 79, run.said
    fault = "runs/unwritten/events.jsonl cannot be written (Is a directory)"
    assert f"gemcutter train: {fault}" in run.said
    assert f": {fault}" in run.said.partition("gemcutter train: ending with rank 0 on ")[2]
    assert "LOST" not in run.said


def test_the_end_of_an_upload_is_no_step(inside, lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 2.0
    monkeypatch.setattr(reporting, "open_tracker", lambda *_: News(lambda: time.sleep(seconds)))
    assert inside("uploads", "steps=2")[0] == 0
    *_, end, last = lab.run("uploads").events
    assert (end["event"], last["event"]) == ("end", "tracker")
    assert last["spent"]["other"] >= seconds
    assert last["spent"]["step"] < end["spent"]["step"] + seconds / 2


def test_the_time_left_follows_from_steps_since_the_run_went_back(monkeypatch, capfd) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    values = {"loss": 3.0, "tokens_per_second": 10.0}
    shown = Terminal("run", 100, 200)
    facts = {"from_step": 140, "to_step": 80, "passed_over": "no data", "why": "spike", "incident": "file"}
    now[0] = 4000.0
    shown.say("rollback", facts)
    now[0] += 60.0
    shown.show(90, values)
    assert "step 90/200  loss 3.000  10 tokens/s  11:00 left" in capfd.readouterr().err

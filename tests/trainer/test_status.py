"""Promises of `gemcutter status`: true at a glance, at once, and no run is disturbed by it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer.report.goodput import ACTIVITIES, Ledger, goodput, unsettled
from trainer.report.stopwatch import boot_id
from trainer.run_directory import RunDirectory
from trainer.status.recorded import Status, _needed, read_status
from trainer.status.show import show_all, show_one


def spent(**seconds: float) -> Ledger:
    return Ledger(dict.fromkeys(ACTIVITIES, 0.0) | seconds)


RUNNING = Status(
    run_id="web-1a2b3c4d", path="runs/web-1a2b3c4d", state="running", cause="", attempts=3, processes=8, device="cuda",
    step=19800, steps=1000000, loss=2.3456, tokens_per_second=123456.0, silent=2.0, checkpoint=19500, saved=310.0,
    ledger=spent(step=90000.0, data=1000.0, save=2000.0, start=500.0, lost=900.0, hang=600.0, down=5000.0),
    incidents=[
        {"time": 1.8e9, "attempt": 2, "event": "save_failed", "step": 300, "error": "No space left on device"},
        {"time": 1.7e9, "attempt": 1, "event": "unheard", "of": "this", "at_step": 3, "spent": {"step": 1.0}},
    ],
)  # fmt: skip
DIVERGED = Status(
    run_id="a-run-with-a-longer-name-than-fits-99999999", path="runs/a-run", state="diverged",
    cause="step 12 of a-run has loss=nan,\nas the last of 10 steps in a row", attempts=1, processes=1, device="cpu",
    step=12, steps=200, loss=None, tokens_per_second=874.4, silent=90000.0, checkpoint=None, saved=None,
    ledger=spent(step=8.0, start=2.0), incidents=[],
)  # fmt: skip
IDLE = Status(
    run_id="gemma", path="runs/gemma", state="idle", cause="", attempts=0, processes=None, device=None, step=0,
    steps=None, loss=None, tokens_per_second=None, silent=None, checkpoint=None, saved=None, ledger=spent(),
    incidents=[],
)  # fmt: skip

ALL = """\
run             state             step  loss tok/s goodput    saved tries incid.
web-1a2b3c4d    running  19800/1000000 2.346  123k     90% 19500 5m     3      2
a-run-with-a-lo diverged        12/200     -   874     80%        -     1      0
nger-name-than-
fits-99999999
gemma           idle                 -     -     -       -        -     0      0
a-run-with-a-longer-name-than-fits-99999999 diverged: step 12 of a-run has
loss=nan, as the last of 10 steps in a row
"""
ONE = """\
web-1a2b3c4d running, attempt 3 on 8 cuda process(es)
step 19800 of 1000000  loss 2.346  123,456 tokens/s
checkpoint of step 19500, 5m old, in runs/web-1a2b3c4d

Where 27:46:40 went, 90.0% of it into steps
step  90.0% 25:00:00 ##################   training steps
data   1.0%  0:16:40                      waiting for the data of a step
save   2.0%  0:33:20                      held up by a checkpoint
start  0.5%  0:08:20                      until a process began to train
lost   0.9%  0:15:00                      not saved, so done again
hang   0.6%  0:10:00                      nothing moved
down   5.0%  1:23:20 #                    nobody at work between attempts

Incidents, the newest of 2 first
2027-01-15 08:00:00 attempt 2 the checkpoint of step 300 FAILED: No space left
                              on device
2023-11-14 22:13:20 attempt 1 unheard: of=this

Next: `kill` its process with SIGTERM to stop it: it saves first. `tail -f
runs/web-1a2b3c4d/metrics.jsonl`
"""
ENDED_BADLY = """\
a-run-with-a-longer-name-than-fits-99999999 diverged, attempt 1 on 1 cpu
process(es)
  step 12 of a-run has loss=nan, as the last of 10 steps in a row
step 12 of 200  874 tokens/s
no checkpoint, in runs/a-run

Where 10.0s went, 80.0% of it into steps
step  80.0% 8.0s ################     training steps
start 20.0% 2.0s ####                 until a process began to train

Next: `gemcutter explain a-run-with-a-longer-name-than-fits-99999999 --step N`
says what was in a step, `gemcutter skip
a-run-with-a-longer-name-than-fits-99999999 --steps A-B` passes over them; then
start again, from the beginning
"""


def printed(show: Callable[[Console, Any], None], what: Any) -> str:
    """As it is on 80 columns, without the spaces that end a line."""
    console = Console(width=80)
    with console.capture() as capture:
        show(console, what)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    return "".join(line.rstrip() + "\n" for line in lines)


def test_all_runs_fit_a_terminal() -> None:
    assert printed(show_all, [RUNNING, DIVERGED, IDLE]) == ALL


def test_one_run_says_where_its_time_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    assert printed(show_one, RUNNING) == ONE


def test_a_run_that_ended_badly_says_why_and_what_to_do() -> None:
    assert printed(show_one, DIVERGED) == ENDED_BADLY


def gemcutter(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "launch", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)


def test_the_command_shows_real_runs_without_torch(shared_lab, alone, pair) -> None:
    done = gemcutter("status", folder=shared_lab.folder)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert {"alone", "pair"} <= set(rows)
    share = round(100 * goodput(alone.ledger, alone.lines).goodput)
    assert rows["alone"][1:3] == ["ended", "20/20"]
    assert rows["alone"][3] == f"{alone.lines[-1]['loss']:.3f}"
    assert rows["alone"][5:7] == [f"{share}%", "20"]
    one = gemcutter("status", "pair", "--json", folder=shared_lab.folder)
    said = json.loads(one.stdout)
    assert (said["state"], said["processes"], said["checkpoint"]) == ("ended", 2, 20)
    assert sum(said["seconds"].values()) == pytest.approx(said["wall_seconds"])
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "trainer", "status"],
        cwd=shared_lab.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {line.rsplit("|", 1)[-1].strip() for line in loaded.stderr.splitlines()} & {"torch", "numpy", "wandb"}


def test_a_run_at_work_and_one_that_was_killed(lab) -> None:
    run = lab.start("short", "steps=100000", "checkpoint.every=10")
    run.until(lambda: any(event["event"] == "checkpoint" for event in run.events), "a checkpoint")
    status = read_status(run.folder)
    assert (status.state, status.cause) == ("running", "")
    assert status.checkpoint is not None
    assert status.saved is not None
    assert status.saved < 30
    run.process.kill()
    run.wait()
    status = read_status(run.folder)
    assert status.state == "died"
    assert status.cause == f"it said nothing more after step {run.lines[-1]['step']}: killed, or its host went down"
    again = lab.start("short", "steps=100000")
    again.until(lambda: len([x for x in again.events if x["event"] == "start"]) == 2, "the second start")
    assert read_status(run.folder).state == "running"
    again.until(lambda: any(line["attempt"] == 2 for line in again.lines), "a step of the second attempt")
    again.process.terminate()
    assert again.wait().code == 75
    status = read_status(run.folder)
    assert (status.state, status.attempts, status.step) == ("stopped", 2, again.lines[-1]["step"])
    assert status.ledger == goodput(again.ledger, again.lines)


def test_a_run_is_not_refused_because_somebody_looks(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock that `status` shares for a moment is free before a job gives up."""
    monkeypatch.chdir(lab.folder)
    lock = lab.folder / "runs" / "looked" / ".lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    looks = "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); print(flush=True)"
    command = [sys.executable, "-c", f"{looks}; time.sleep(0.1)", str(lock)]
    directory = RunDirectory(lab.job("looked"))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"\n"
        assert directory.claim() == 1


def event(kind: str, **facts: Any) -> dict[str, Any]:
    return {"time": 1.0, "attempt": 1, "event": kind, **facts}


@pytest.mark.parametrize(
    ("events", "state", "cause"),
    [
        ([], "idle", ""),
        ([event("end", step=9)], "ended", ""),
        ([event("stop", step=9)], "stopped", ""),
        ([event("end", step=9), event("profile", first=8, last=9)], "ended", ""),
        ([event("checkpoint", step=9)], "died", "it said nothing more after step 7"),
        ([event("failed", error="a disk is full", code=79)], "died", "a disk is full"),
        ([event("failed", error="loss=nan", code=77), event("restart", code=77)], "diverged", "loss=nan"),
        ([event("hang", seconds=9.0, why="rank 3 did not come"), event("restart", code=76)], "hung", "rank 3 did not"),
        ([event("lost", why="rank 2 is gone")], "died", "rank 2 is gone after step 7"),
    ],
)
def test_the_last_event_says_how_a_run_ended(tmp_path: Path, events: list[Any], state: str, cause: str) -> None:
    lines = [event("start", step=0, boot="b", began=1.0, at_step=0, spent={"start": 1.0}), *events] if events else []
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step_line(1, 7)) + "\n" if events else "")
    status = read_status(tmp_path)
    assert status.state == state
    assert status.cause.startswith(cause)
    assert bool(status.cause) == bool(cause)


@pytest.mark.parametrize("last", ["hang", "lost", "checkpoint", "failed", "stop", "quarantined"])
def test_an_attempt_that_loads_is_starting_whatever_the_one_before_said(tmp_path: Path, last: str) -> None:
    facts = {"step": 9, "code": 79, "error": "a disk is full", "why": "rank 3 did not come", "seconds": 9.0}
    lines = [event("start", step=0, boot=boot_id(), began=1.0, at_step=0, spent={}), event(last, **facts)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.fileno(), (0.5, 0.5))  # claimed by the attempt that then said that it starts
        assert read_status(tmp_path).state == ("hung" if last == "hang" else "running")
        os.utime(lock.fileno(), (2.0, 2.0))
        status = read_status(tmp_path)
    assert (status.state, status.cause) == ("starting", "")


def step_line(attempt: int, step: int) -> dict[str, Any]:
    return {
        "step": step, "attempt": attempt, "time": 1.0, "loss": 2.0, "step_seconds": 1.0, "data_seconds": 0.25,
        "tokens_per_second": 5.0,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_what_the_ledger_needs_is_found_among_many_lines(tmp_path: Path, seed: int) -> None:
    draw, events, lines, step = random.Random(seed), [], [], 0
    for attempt in range(1, draw.randint(2, 12)):
        step = draw.randint(0, step)
        events.append(event("start", step=step) | {"attempt": attempt, "at_step": step, "spent": {"start": 1.0}})
        for _ in range(draw.choice((0, 1, 400))):
            step += 1
            lines.append(step_line(attempt, step) | {"padding": "x" * draw.randint(0, 90)})
            if draw.random() < 0.01:
                events.append(event("time", at_step=step, spent={"start": 1.0, "step": 1.0 * step}, attempt=attempt))
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12')
    after = dict(unsettled(events))
    assert list(_needed(events, path)) == [line for line in lines if line["step"] > after[line["attempt"]]]


def test_an_unknown_run_is_refused_with_those_that_are_known(command, lab) -> None:
    code, _, said = command("status", "nobody")
    assert code == 79
    assert "there is no run at runs/nobody" in said
    assert command("status")[:2] == (0, "there are no runs below runs/ here: `gemcutter train` makes one\n")
    assert command("status", "--follow")[0] == 78

"""Promises of restarts: after a failure training goes on by itself, as often as the class of the failure allows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conf import schema
from conf.exits import failure
from conf.processes import STOP_SIGNALS
from launch import restarts
from launch.restarts import Stopping, keep_running


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> schema.Job:
    """One whose run directory is there, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "again").mkdir(parents=True)
    made = schema.Job(run_id="again")
    made.launch.restarts = schema.Restarts(infrastructure=3, hang=2, data=1)
    return made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before each restart, which take no time."""
    waited: list[float] = []
    monkeypatch.setattr(Stopping, "pause", lambda self, seconds: waited.append(seconds))
    return waited


def ledger(event: str | None = None, **facts: object) -> list[dict]:
    """The ledger, after another event was written where one is given."""
    path = Path("runs/again/events.jsonl")
    if event is not None:
        with path.open("a") as file:
            file.write(json.dumps({"time": time.time(), "attempt": 1, "event": event, **facts}) + "\n")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ending(*codes: int, events: dict[int, list[tuple[str, dict]]] | None = None):
    """Starts that end with these codes, of which some write events; each start is counted."""
    left = list(enumerate(codes))

    def start(stopping: Stopping) -> int:
        number, code = left.pop(0)
        ledger("start")
        for event, facts in (events or {}).get(number, []):
            ledger(event, **facts)
        return code

    return start, left


@pytest.mark.parametrize(
    ("code", "kind"),
    [(0, None), (75, None), (77, None), (78, None), (76, "hang"), (79, "data")]
    + [(code, "infrastructure") for code in (1, 137, 139, 134, 143)],
)
def test_each_code_has_its_class(code: int, kind: str | None) -> None:
    assert failure(code) == kind


@pytest.mark.parametrize("code", [0, 75, 77, 78])
def test_what_a_restart_cannot_help_is_not_started_again(job: schema.Job, pauses: list[float], code: int) -> None:
    start, left = ending(code, 0)
    assert keep_running(job, start) == code
    assert len(left) == 1
    assert pauses == []


@pytest.mark.parametrize(("code", "starts"), [(137, 4), (76, 3), (79, 2)])
def test_a_budget_ends(job: schema.Job, pauses: list[float], code: int, starts: int, capsys) -> None:
    start, left = ending(*[code] * 9)
    assert keep_running(job, start) == code
    assert 9 - len(left) == starts
    assert pauses == [0.0, 1.0, 2.0][: starts - 1]
    assert f"is not started again: launch.restarts.{failure(code)}={starts - 1}" in capsys.readouterr().err


def test_classes_have_budgets_of_their_own(job: schema.Job, pauses: list[float]) -> None:
    start, left = ending(76, 137, 76, 137, 79, 137, 137)
    assert keep_running(job, start) == 137
    assert not left
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_new_checkpoint_gives_the_budget_back(job: schema.Job, pauses: list[float]) -> None:
    events = {2: [saved(10)], 4: [saved(20)]}
    start, left = ending(137, 137, 137, 137, 137, 0, events=events)
    assert keep_running(job, start) == 0
    assert not left
    assert pauses == [0.0, 1.0, 0.0, 1.0, 0.0]


def saved(step: int, event: str = "checkpoint", **facts: object) -> tuple[str, dict]:
    return event, {"step": step, "place": "runs/again/checkpoints", **facts}


@pytest.mark.parametrize(
    "undone",
    [
        [saved(20)],  # again, after one that was lost
        [saved(30), ("quarantined", {"step": 30, "reason": "bits"})],
        [saved(30), saved(30, "save_failed", error="it is broken")],
        [saved(30), ("rollback", {"from_step": 34, "to_step": 10})],
        [saved(30), ("corruption", {"step": 34, "sound": 20})],
    ],
)
def test_what_does_not_stand_is_no_progress(job: schema.Job, pauses: list[float], undone: list) -> None:
    """A run that saves the same steps again and again, each time in vain, would be started for ever."""
    events = {0: [saved(20)]} | dict.fromkeys(range(1, 9), undone)
    start, left = ending(*[137] * 9, events=events)
    assert keep_running(job, start) == 137
    assert 9 - len(left) == 1 + 3  # the first start went on, and the budget is 3


@pytest.mark.parametrize(
    "still", [saved(30, "save_failed", place="gs://bucket"), ("corruption", {"step": 34, "sound": None}), saved(10)]
)
def test_what_stands_is_progress(job: schema.Job, pauses: list[float], still: tuple[str, dict]) -> None:
    """That a copy failed, or a processor computes wrongly, says nothing of what is saved."""
    start, left = ending(137, 137, 137, 137, 0, events={2: [saved(30), still]})
    assert keep_running(job, start) == 0
    assert not left


def test_restarts_are_in_the_ledger(job: schema.Job, pauses: list[float]) -> None:
    start, _ = ending(137, 76, 0)
    assert keep_running(job, start) == 0
    found = [(x["code"], x["failure"], x["left"]) for x in ledger() if x["event"] == "restart"]
    assert found == [(137, "infrastructure", 2), (76, "hang", 1)]


def test_a_line_that_a_kill_cut_short_makes_room(job: schema.Job, pauses: list[float]) -> None:
    def start(stopping: Stopping) -> int:
        whole = ledger("start")
        if len(whole) > 1:
            return 0
        with Path("runs/again/events.jsonl").open("a") as file:
            file.write('{"time": 1, "att')
        return 137

    assert keep_running(job, start) == 0
    assert [event["event"] for event in ledger()] == ["start", "restart", "start"]


UNHEARD = """
import sys
from conf import schema
from launch import __main__, jobs
from launch.restarts import keep_running
codes = [137, 137, int(sys.argv[1])]
jobs.run_job = lambda kind, rest: keep_running(schema.Job(run_id="again"), lambda stopping: codes.pop(0))
sys.exit(__main__.main(["train"]))
"""


@pytest.mark.parametrize("code", [0, 78])
def test_restarts_go_on_when_nobody_reads_what_is_said(job: schema.Job, code: int) -> None:
    """The pipe is closed, and how it ends is still told by the exit code."""
    read, write = os.pipe()
    os.close(read)
    ledger("start")
    environment = os.environ | {"PYTHONPATH": str(Path(restarts.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", UNHEARD, str(code)], stderr=write, env=environment, check=False)
    os.close(write)
    assert done.returncode == code
    assert [event["event"] for event in ledger()] == ["start", "restart", "restart"]


@pytest.mark.parametrize("when", ["while it runs", "in the pause"])
def test_a_stop_signal_ends_the_restarts(job: schema.Job, when: str) -> None:
    starts = []

    def start(stopping: Stopping) -> int:
        starts.append(time.monotonic())
        if when == "while it runs":
            signal.raise_signal(signal.SIGTERM)
        elif len(starts) == 2:  # the pause that follows is of a second
            threading.Timer(0.2, signal.raise_signal, [signal.SIGTERM]).start()
        return 137

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    began = time.monotonic()
    try:
        assert keep_running(job, start) == 137
        assert len(starts) == (1 if when == "while it runs" else 2)
        assert time.monotonic() - began < 0.9
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # how it ends is settled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_nothing_is_read_that_is_not_there(tmp_path: Path) -> None:
    """A run that failed before it had a directory."""
    assert restarts._sound_step(tmp_path / "none") == 0

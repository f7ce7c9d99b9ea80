"""Promises of a stop: from a process's first moment to its last, whoever asks, all save at one step and end with 75."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conf.processes import STOP_SIGNALS, stop_signals
from trainer import checkpoint
from trainer.liveness.stop import MAINTENANCE, StopSignal


def votes(*asked_by: str | None) -> tuple[list[StopSignal], list[float]]:
    """What processes that were asked so think, and the sums of what they say."""
    stops = [StopSignal() for _ in asked_by]
    for stop, by in zip(stops, asked_by, strict=True):
        if by is not None:
            stop.ask(by)
    return stops, [sum(each) for each in zip(*(stop.votes() for stop in stops), strict=True)]


@pytest.mark.parametrize(
    ("asked_by", "heard"),
    [
        ((None, None), (None, None)),
        (("SIGTERM", None), ("SIGTERM", "SIGTERM")),
        ((None, MAINTENANCE), (MAINTENANCE, MAINTENANCE)),
        (("SIGUSR2", "SIGTERM"), ("SIGTERM and SIGUSR2", "SIGTERM and SIGUSR2")),
        (("a button", None), ("a button", "another process")),
        (("SIGINT", "a button"), ("SIGINT and another process", "SIGINT and a button")),
    ],
)
def test_every_process_hears_who_asked_any_of_them(asked_by, heard) -> None:
    stops, sums = votes(*asked_by)
    assert tuple(stop.agreed(sums) for stop in stops) == heard


def test_who_asked_first_counts() -> None:
    stop = StopSignal()
    stop.ask("SIGTERM")
    stop.ask("a button")
    assert stop.asked_by == "SIGTERM"


def answers(pid: int) -> bool:
    """Whether a process has handlers for stop signals."""
    caught = int(Path(f"/proc/{pid}/status").read_text().split("SigCgt:")[1].split()[0], 16)
    return all(caught & 1 << number - 1 for number in stop_signals())


@pytest.mark.parametrize("launcher", [("trainer",), ("launch",)])
def test_a_stop_before_the_first_step_ends_with_75_and_leaves_nothing(lab, launcher: tuple[str, ...]) -> None:
    """Long before torch is imported."""
    running = lab.start("early", launcher=launcher)
    running.until(lambda: answers(running.process.pid), "handlers")
    running.process.send_signal(signal.SIGTERM)
    assert running.wait().code == 75, running.said
    assert "stopped before anything was done, as asked" in running.said
    assert not running.folder.exists()


def test_a_stop_of_a_rank_that_has_just_been_started(lab) -> None:
    """Until it can answer, signals wait in it; and the other one hears of it."""
    running = lab.start("newborn", processes=2)
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    running.until(lambda: children.read_text().split(), "a rank")
    os.kill(int(children.read_text().split()[0]), signal.SIGUSR2)
    assert running.wait().code == 75, running.said
    assert "as asked by SIGUSR2" in running.said


def test_signals_up_to_the_last_moment_change_nothing(lab) -> None:
    """A launcher, the group and the scheduler's second try: the process gets each of them."""
    running = lab.start("pestered", "steps=100000")
    running.until_step(2)
    while running.process.poll() is None:
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.0005)
    assert running.wait().code == 75, running.said
    assert checkpoint.committed_steps(running.folder / "checkpoints") == [running.lines[-1]["step"]]
    assert [event["event"] for event in running.events] == ["start", "checkpoint", "stop"]
    assert running.events[-1]["by"] == "SIGTERM"


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_closes_stops_a_run_but_for_nohup(lab, nohup: bool) -> None:
    """Nothing can be written there any more, and the last save is none the less made."""
    above, below = pty.openpty()
    command = [sys.executable, "-P", "-m", "trainer.elastic", "1", "train", *lab.overrides("closed", "steps=100000")]
    how = signal.SIG_IGN if nohup else signal.SIG_DFL
    with subprocess.Popen(
        command, cwd=lab.folder, env=lab.environment, stdout=below, stderr=below, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, how),  # as nohup does
    ) as process:  # fmt: skip
        try:
            os.close(below)
            run = lab.run("closed")
            reading = threading.Thread(target=read_all, args=(above, run.folder / "metrics.jsonl"))
            reading.start()
            reading.join(60)
            os.close(above)
            os.killpg(process.pid, signal.SIGHUP)
            if nohup:
                seen = len(run.lines)
                deadline = time.monotonic() + 30
                while len(run.lines) < seen + 20:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.terminate()
            assert process.wait(60) == 75
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert run.events[-1]["event"] == "stop"
    assert run.events[-1]["by"] == ("SIGTERM" if nohup else "SIGHUP")
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [run.lines[-1]["step"]]


def read_all(terminal: int, metrics: Path) -> None:
    """Read what is said there until a file is written: a terminal that nobody reads would be full one day."""
    while not metrics.exists():
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)


def test_a_signal_to_the_whole_group_spares_workers_that_are_just_starting(lab) -> None:
    """They, and what keeps track of their memory, have no handlers while they import."""
    running = lab.start("group", "data.workers=2", "steps=100000")
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    running.until(lambda: len(children.read_text().split()) == 3, "workers and their tracker")
    for number in STOP_SIGNALS:
        os.killpg(running.process.pid, number)
    assert running.wait().code == 75, running.said
    assert running.events[-1]["event"] == "stop"
    assert "resource_tracker" not in running.said


STARTER = """
import os, subprocess, sys, time
from conf.processes import starter
code = "from conf.processes import end_with; end_with(); print('ready', flush=True); import time; time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | starter(), stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_process_ends_with_the_one_that_started_it(lab) -> None:
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=lab.environment) as starter:
        assert starter.stdout is not None
        child = Path("/proc", starter.stdout.readline().strip(), "cmdline")
        assert child.read_bytes()
        starter.kill()
    deadline = time.monotonic() + 10
    while child.exists() and child.read_bytes():  # that of a zombie is empty
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_whose_starter_is_gone_already_ends_at_once(lab) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from conf.processes import end_with; end_with(1 << 22); print('lives')"],
        env=lab.environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")

"""Promises of several processes under one command: its exit code tells the cause, none is left behind.

That a SIGTERM makes all of them save and end with 75 is in test_resume.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer import checkpoint
from trainer.elastic import most_severe
from trainer.liveness.children import Children


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([1, 78, 1], 78),
        ([1, 79], 79),
        ([79, 78], 78),
        ([1, 77, 79], 79),
        ([77, 1], 77),
        ([75, 77], 77),
        ([76, 75], 76),
        ([75, 75], 75),
        ([75, 1], 75),
        ([1], 1),
        ([-9], 137),
        ([1, -9], 137),
        ([-6, 1], 134),
        ([-15, -9], 137),
        ([3, 1], 3),
    ],
)
def test_the_cause_comes_before_its_consequences(codes: list[int], code: int) -> None:
    assert most_severe(codes) == code


def test_a_child_that_ends_just_before_it_is_killed_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError

    watching = Children(tmp_path)
    (tmp_path / "0.beat").write_text(f"{os.getpid()} 1")
    monkeypatch.setattr(os, "kill", gone)
    assert watching._look(tmp_path / "0.beat", now=10.0)
    assert watching._look(tmp_path / "0.beat", now=12.0)
    assert watching.codes() == [76]


def children(parent: int) -> list[int]:
    """The training processes below a launcher."""
    try:
        pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in pids if b"trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_configuration_error_keeps_its_code(lab, alone) -> None:
    lab.copy(alone, "other")
    running = lab.start("other", "optim.peak_lr=0.5", processes=2).wait()
    assert running.code == 78, running.said
    assert "belongs to a run with another configuration" in running.said


def test_a_killed_rank_ends_all_and_leaves_no_orphan(lab) -> None:
    running = lab.start("bereft", "steps=100000", "checkpoint.every=2", processes=2)
    running.until_step(3)
    ranks = children(running.process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    assert running.wait().code == 137, running.said
    deadline = time.monotonic() + 5
    while any(map(alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, ranks))
    steps = checkpoint.committed_steps(running.folder / "checkpoints")
    found = checkpoint.find(running.folder / "checkpoints", steps[-1])
    assert found is not None
    found.verify()


def test_a_rank_killed_as_it_starts_does_not_keep_the_others_waiting(lab) -> None:
    """They wait for it to join them, and would for minutes."""
    running = lab.start("stillborn", processes=2)
    running.until(lambda: len(children(running.process.pid)) == 2, "two ranks")
    os.kill(children(running.process.pid)[1], signal.SIGKILL)
    began = time.monotonic()
    assert running.wait().code == 137, running.said
    assert time.monotonic() - began < 25  # 5 and the time of a busy machine; torch's own 30 would be too late


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_launcher_leaves_no_orphan(lab, processes: int) -> None:
    """Nobody would start them again, and whoever tries finds the run free."""
    overrides = lab.overrides("orphans", f"mesh.fsdp={processes}", "steps=100000")
    with subprocess.Popen([sys.executable, "-P", "-m", "launch", "train", *overrides], **spawned(lab)) as process:
        run = lab.run("orphans")
        wait_for(lambda: any(line["step"] >= 3 for line in run.lines), process)
        ranks = [pid for rank in range(processes) for pid in below(process.pid) if is_rank(pid, rank, processes)]
        assert len(ranks) == processes
        process.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, ranks))


def test_a_killed_rank_is_replaced_and_changes_nothing(lab, pair) -> None:
    """The whole command, whose launcher starts anew after kill -9 of a rank: parameters as undisturbed, bit for bit."""
    changes = (lab.corpus.held_out, "evaluate.every=10", "evaluate.rows=17", "mesh.fsdp=2", "checkpoint.every=4")
    command = [sys.executable, "-P", "-m", "launch", "train", *lab.overrides("killed", *changes)]
    run = lab.run("killed")
    with subprocess.Popen(command, **spawned(lab)) as process:
        wait_for(lambda: any(event["event"] == "checkpoint" for event in run.events), process)
        (victim,) = (pid for pid in below(process.pid) if is_rank(pid, 1, 2))
        os.kill(victim, signal.SIGKILL)
        assert process.wait(timeout=120) == 0, (lab.folder / "launch.log").read_text()
    (event,) = (event for event in run.events if event["event"] == "lost")
    assert event["ranks"] == [1]
    assert [event["failure"] for event in run.events if event["event"] == "restart"] == ["infrastructure"]
    assert "137 (infrastructure), and is started again" in (lab.folder / "launch.log").read_text()
    ours, theirs = run.tensors(), pair.tensors()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def spawned(lab) -> dict[str, Any]:
    """How to run the whole command; what it says goes to launch.log."""
    log = (lab.folder / "launch.log").open("ab")
    return {"cwd": lab.folder, "env": lab.environment, "stdout": log, "stderr": log, "start_new_session": True}


def wait_for(happened: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def below(pid: int) -> list[int]:
    """All processes below one."""
    children = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return children + [process for child in children for process in below(child)]


def is_rank(pid: int, rank: int, processes: int) -> bool:
    """Whether a process trains as this rank; one that trains alone has none."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    surroundings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return b"trainer" in words and (processes == 1 or f"RANK={rank}".encode() in surroundings)

"""Promises of several processes under one command: its exit code tells the cause, none is left behind.

That a SIGTERM makes all of them save and end with 75 is in test_resume.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from trainer import checkpoint
from trainer.elastic import most_severe


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

"""Promises of who hangs: a process that stands still ends the job in time, and is named with its host.

Several hosts are in tests/chaos.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from trainer.heartbeat import Beat
from trainer.watch import judge

SOON = ("hang.seconds=6", "steps=100000", "checkpoint.every=100000")


def process_of(rank: int, launcher: int) -> int:
    """The training process of a rank below a launcher."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def named(running, kind: str) -> dict:
    """The one event of a kind."""
    (event,) = (event for event in running.events if event["event"] == kind)
    assert event["host"] == socket.gethostname()
    return event


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_all_end(lab, stopped: int) -> None:
    """Whichever: the first process keeps the ledger, another tells in its place."""
    running = lab.start("stopped", *SOON, processes=2)
    running.until_step(5)
    pids = [process_of(rank, running.process.pid) for rank in (0, 1)]
    os.kill(pids[stopped], signal.SIGSTOP)
    began = time.monotonic()
    assert running.wait().code == 76, running.said
    assert time.monotonic() - began < 6 + 10
    event = named(running, "hang")
    assert event["ranks"] == [stopped]
    assert "stopped, as by SIGSTOP" in event["why"]
    assert all(map(gone, pids))
    assert f"HANG: rank [{stopped}] on {socket.gethostname()} did not arrive" in running.said
    stack = running.folder / "stacks" / f"attempt-0001-rank-{1 - stopped:05d}.txt"
    assert "trainer/train.py" in stack.read_text()

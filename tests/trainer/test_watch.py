"""Promises of who hangs: a process that stands still ends the job in time, and is named with its host.

Several hosts are in tests/chaos.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import TCPStore

from trainer.backend.base import World
from trainer.liveness.heartbeat import Beat
from trainer.liveness.reading import Reading
from trainer.liveness.watch import Watch, judge
from trainer.report import Stopwatch

DEADLINE = 5
SOON = (f"hang.seconds={DEADLINE}", "steps=100000", "checkpoint.every=100000")
HERE = socket.gethostname()

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", "slow_data")


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


def named(running: Any, kind: str) -> dict[str, Any]:
    """The one event of a kind."""
    (event,) = (event for event in running.events if event["event"] == kind)
    assert event["host"] == HERE
    return event


@pytest.fixture
def slow(lab, monkeypatch: pytest.MonkeyPatch):
    """Starts training in which a rank is slow at its data."""

    def start(slow: str, *changes: str, processes: int = 3):
        path = f"{lab.environment['PYTHONPATH']}{os.pathsep}{Path(__file__).parent}"
        lab.environment = lab.environment | {"PYTHONPATH": path, "SLOW": slow}
        rows = f"micro_batch={12 // processes}"  # one micro-batch a step
        return lab.start("slow", rows, *changes, launcher=TORCHRUN if processes == 3 else ("slow_data",))

    return start


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_and_all_end(lab, stopped: int) -> None:
    """Whichever: the first process keeps the ledger, and another tells in its place."""
    running = lab.start("stopped", *SOON, processes=2)
    running.until_step(5)
    pids = [process_of(rank, running.process.pid) for rank in (0, 1)]
    os.kill(pids[stopped], signal.SIGSTOP)
    began = time.monotonic()
    assert running.wait().code == 76, running.said
    assert time.monotonic() - began < DEADLINE + 10
    event = named(running, "hang")
    assert event["ranks"] == [stopped]
    assert "stopped, as by SIGSTOP" in event["why"]
    assert all(map(gone, pids))
    assert f"HANG: rank [{stopped}] on {HERE} did not arrive" in running.said
    stack = running.folder / "stacks" / f"attempt-0001-rank-{1 - stopped:05d}.txt"
    assert "trainer/train.py" in stack.read_text()


def test_a_single_process_that_cannot_end_itself_is_ended(lab) -> None:
    """As on TPU hosts, which have one process each: its launcher watches it, too."""
    running = lab.start("frozen", *SOON, launcher=("trainer.elastic", "1"))
    running.until_step(5)
    pid = int(Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text())
    variables = dict(pair.partition("=")[::2] for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    beat = Path(variables["GEMCUTTER_EXIT_CODES"], "0.beat")
    # Until the watch has seen that its first steps are over, it may be silent for as long as a start may take.
    # Five steps may be over before it says so for the first time.
    running.until(lambda: beat.exists() and float(beat.read_text().split()[1]) < 2 * DEADLINE, "a deadline for steps")
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert running.wait().code == 76, running.said
    assert time.monotonic() - began < DEADLINE + 10
    assert f"process {pid} was silent for" in running.said
    assert gone(pid)


def test_a_process_that_stops_while_it_says_that_it_lives_said_something_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launcher could not tell how long it may be silent, and would wait for ever."""
    monkeypatch.setenv("GEMCUTTER_EXIT_CODES", str(tmp_path))
    watch = object.__new__(Watch)
    watch._allowed = None
    watch._touch(60.0)
    seen = []
    write_text = Path.write_text

    def stopped(path: Path, text: str) -> int:
        for said in (text[:0], text[:3]):
            write_text(path, said)
            seen.append((tmp_path / "0.beat").read_text())
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", stopped)
    watch._touch(5.0)
    assert seen == [f"{os.getpid()} 60.0"] * 2
    assert (tmp_path / "0.beat").read_text() == f"{os.getpid()} 5.0"


def test_a_full_disk_does_not_silence_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher would kill it, though it lives."""
    monkeypatch.setenv("GEMCUTTER_EXIT_CODES", str(tmp_path))
    watch = object.__new__(Watch)
    watch._allowed = None
    watch._touch(60.0)
    os.utime(tmp_path / "0.beat", (0, 0))

    def full(path: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    watch._touch(5.0)
    assert (tmp_path / "0.beat").stat().st_mtime > 0


def test_a_rank_that_waits_for_its_data_is_named(slow) -> None:
    running = slow("2,5,600", *SOON).wait()
    event = named(running, "hang")
    assert event["ranks"] == [2]
    assert (event["activity"], event["step"]) == ("data", 6)
    assert "the others wait for it" in event["why"]
    assert DEADLINE <= event["seconds"] < DEADLINE + 5
    assert (event["key"], event["deadline"]) == ("hang.seconds", DEADLINE)
    assert f"s, and hang.seconds allows {DEADLINE}: " in running.said
    stacks = {path.name: path.read_text() for path in (running.folder / "stacks").glob("*.txt")}
    assert len(stacks) == 3
    assert "slow_micro_batches_from" in stacks["attempt-0001-rank-00002.txt"]
    assert "slow_micro_batches_from" not in stacks["attempt-0001-rank-00001.txt"]


def test_a_single_process_that_stands_still_ends(slow) -> None:
    running = slow("0,5,600", *SOON, processes=1).wait()
    assert running.code == 76, running.said
    event = named(running, "hang")
    assert (event["ranks"], event["activity"], event["step"]) == ([0], "data", 6)
    assert "its stack shows where" in event["why"]
    assert "slow_micro_batches_from" in (running.folder / "stacks" / "attempt-0001-rank-00000.txt").read_text()


@pytest.fixture
def slow_load(lab, alone, monkeypatch: pytest.MonkeyPatch):
    """Goes on with a run whose checkpoint is slow to read, and ends where nothing moves for so many seconds."""

    def start(slow: str, deadline: int):
        lab.copy(alone, "loading")
        path = f"{lab.environment['PYTHONPATH']}{os.pathsep}{Path(__file__).parent}"
        lab.environment = lab.environment | {"PYTHONPATH": path, "SLOW": slow}
        return lab.start("loading", f"hang.start_seconds={deadline}", "steps=21", launcher=("slow_load",)).wait()

    return start


def test_a_load_that_gets_on_is_no_hang(slow_load) -> None:
    deadline = 12  # to which all else that a start does has to keep, on a busy machine too
    running = slow_load("0.25,inf", deadline)
    assert running.code == 0, running.said
    starts = [event for event in running.ledger if event["event"] == "start"]
    assert starts[-1]["step"] == 20
    assert starts[-1]["spent"]["start"] > deadline + 2


def test_a_load_that_stands_still_is_one_and_the_key_is_named(slow_load) -> None:
    began = time.monotonic()
    running = slow_load("0,9", DEADLINE)
    assert running.code == 76, running.said
    assert f"s, and hang.start_seconds allows {DEADLINE}: " in running.said
    assert time.monotonic() - began < 60


def test_a_read_is_no_move_and_costs_no_second() -> None:
    """Moves are compared between processes, which read each as much as they hold."""
    clock, store = Stopwatch(), MemoryStore()
    before, moves, since = time.monotonic(), clock.moves, clock.since
    spent = sum(clock.seconds().values())
    began = time.monotonic()
    assert Reading(store, clock).within("step").read("COMMIT") == b"read"
    ended = time.monotonic()
    assert (clock.moves, clock.activity) == (moves, "start")
    assert ended >= clock.since >= began > since
    passed = sum(clock.seconds().values()) - spent
    assert ended - began <= passed + 1e-6
    assert passed <= time.monotonic() - before + 1e-6


class MemoryStore:
    def within(self, folder: str) -> MemoryStore:
        return self

    def read(self, name: str, begin: int, length: int | None) -> bytes:
        return b"read"


class Racing(Watch):
    """One whose run ends between any two looks at it."""

    def __init__(self) -> None:
        self._looks = itertools.count()
        self._clock, self._processes, self._own, self._first = Stopwatch(), World(0, 2), {}, 0
        self._parts = SimpleNamespace(
            ramp=SimpleNamespace(rows=lambda step: 12), directory=SimpleNamespace(record=print)
        )
        self._folder = Path(os.devnull)
        self._beats = SimpleNamespace(heard={0: (FOUR[0], 0.0), 1: (FOUR[1], 0.0)})
        self._slow = None

    @property
    def _run(self) -> Any:
        return None if next(self._looks) % 2 else SimpleNamespace(step=9, attempt=1)


def test_a_run_that_ends_while_it_is_looked_at_ends_no_watch(capfd: pytest.CaptureFixture[str]) -> None:
    watch = Racing()
    for look in (watch._beat, watch._settling, watch._dump_stacks, lambda: watch._look_for_stragglers(1.0)) * 2:
        look()
    for _ in range(2):
        watch._record("hang", {})
        watch._claim("hang", judge(FOUR, [], FOUR[0]))


def test_the_first_steps_take_their_time(slow) -> None:
    """Then things are compiled."""
    running = slow("0,0,1.5", "hang.seconds=1", "steps=3", processes=1).wait()
    assert running.code == 0, running.said


def test_a_straggler_is_named(slow) -> None:
    running = slow("1,0,0.2", "hang.seconds=60", "steps=100000")
    running.until(lambda: any(event["event"] == "straggler" for event in running.events), "a straggler")
    event = named(running, "straggler")
    assert (event["rank"], event["activity"]) == (1, "data")
    # Seen over ten seconds or more, by heartbeats that are up to a second old.
    assert event["seconds_per_step"] >= 0.2 * (1 - 1 / 10) > 2 * event["median"]
    assert "is SLOW" in running.said


def test_the_fault_of_one_is_the_exit_code_of_all(lab, alone) -> None:
    """On several hosts each launcher sees its own processes only, and must not start again what cannot work."""
    lab.copy(alone, "other")
    keys = lab.overrides("other", "optim.peak_lr=0.5")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as the first host's launcher has it
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    started = []
    for rank in range(2):
        environment = lab.environment | job | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-P", "-m", "trainer", "train", *keys]
        log = (lab.folder / f"rank-{rank}.log").open("wb")
        started.append(subprocess.Popen(command, cwd=lab.folder, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [(lab.folder / f"rank-{rank}.log").read_text() for rank in range(2)]
    assert codes == [78, 78], said
    assert "belongs to a run with another configuration" in said[0]
    assert "ending with rank 0" in said[1]


def beat(rank: int, host: str, moves: int = 7, **changes: Any) -> Beat:
    return Beat(rank, host, 1, "step", 3, moves, 9.0, 1.0, **changes)


FOUR = {rank: beat(rank, host) for rank, host in enumerate(("a", "a", "b", "b"))}


@pytest.mark.parametrize(
    ("beats", "silent", "ranks", "host", "why"),
    [
        (FOUR, [3], [3], "b", "no heartbeat came from there"),
        (FOUR, [2, 3], [2, 3], "b", "any process of that host"),
        (FOUR, [1, 2], [1, 2], "a, b", "no heartbeat came from there"),
        (FOUR | {1: beat(1, "a", moves=6)}, [], [1], "a", "does not get on, and the others wait"),
        (FOUR | {1: beat(1, "a", moves=6)}, [2], [2], "b", "no heartbeat came from there"),
        (FOUR | {2: beat(2, "b", lost=True)}, [2, 3], [3], "b", "any process of that host"),
        (FOUR, [], [], "a", "the network between them"),
        ({0: FOUR[0]}, [], [0], "a", "its stack shows where"),
    ],
)
def test_who_is_to_blame(beats: dict[int, Beat], silent: list[int], ranks: list[int], host: str, why: str) -> None:
    """Silence comes before slowness; who left since it had lost another is not the one that was lost."""
    verdict = judge(beats, silent, FOUR[0])
    assert (verdict.ranks, verdict.host) == (ranks, host)
    assert why in verdict.why

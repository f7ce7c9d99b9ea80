"""Promises of several processes under one command: its exit code tells the cause, none is left behind.

That a SIGTERM makes all of them save and end with 75 is in test_resume.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.exits import declare
from trainer import checkpoint, elastic
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

    watching = Children(tmp_path, most_severe)
    (tmp_path / "0.beat").write_text(f"{os.getpid()} 1")
    monkeypatch.setattr(os, "kill", gone)
    assert watching._look(tmp_path / "0.beat", now=10.0)
    assert watching._look(tmp_path / "0.beat", now=12.0)
    assert watching.codes() == [76]


def test_children_that_start_anew_were_there_before(tmp_path: Path) -> None:
    """Without their files for a moment, they are not hosts that never met."""
    watching = Children(tmp_path, most_severe)
    assert not watching.seen()
    beat = tmp_path / "0.beat"
    beat.write_text(f"{os.getpid()} 100")
    with watching:
        deadline = time.monotonic() + 60
        while not watching._seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    beat.unlink()
    assert watching.seen()
    tmp_path.rmdir()
    assert watching.seen()


def test_a_full_disk_hides_no_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither where a process says how it ends, nor where its launcher makes the folder for that."""
    monkeypatch.setenv("GEMCUTTER_EXIT_CODES", str(tmp_path / "gone"))
    monkeypatch.setenv("GEMCUTTER_STARTER", "0")
    declare(79)

    def full(prefix: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(elastic, "tempfile", SimpleNamespace(TemporaryDirectory=full))
    assert elastic.main(["1", "train"]) == 79
    assert "No space left on device" in capfd.readouterr().err


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


WAITING = """
import sys
from types import SimpleNamespace
from conf.processes import deafen
from trainer import elastic
elastic.ip_address = lambda address: SimpleNamespace(is_loopback=False)  # of other addresses this host may have none
elastic.JOIN_SECONDS = int(sys.argv[1])
deafen()
sys.exit(elastic.main(["--nodes=2", f"--rendezvous={sys.argv[2]}", "1", "train"]))
"""


@pytest.fixture
def waiting(lab):
    """Starts the first of two hosts, or the second while there is no first, which waits so many seconds at most."""
    started = []

    def start(first: bool, seconds: int) -> tuple[subprocess.Popen[str], str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = f"127.0.0.1:{port}" if first else f"nowhere.invalid:{port}"
        command = [sys.executable, "-c", WAITING, str(seconds), place]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=lab.folder, env=lab.environment, **streams))
        return started[-1], place

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("first", [True, False])
def test_a_stop_while_hosts_wait_for_each_other_is_answered_at_once(waiting, first: bool) -> None:
    process, place = waiting(first, 3600)
    wait_for(lambda: waits(process.pid, place if first else None), process)
    process.terminate()
    said = process.communicate(timeout=60)[1]  # a sixtieth of how long they would wait
    assert process.returncode == 75, said
    assert "stopped before anything was done, as asked by SIGTERM" in said


def waits(pid: int, place: str | None) -> bool:
    """Whether a launcher has come so far: it holds the place where hosts meet, or has loaded what it needs for that."""
    if place is None:
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    host, _, port = place.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


@pytest.mark.parametrize("first", [True, False])
def test_hosts_that_do_not_come_end_the_job_for_good(waiting, first: bool) -> None:
    """Another start would only wait as long again."""
    process, place = waiting(first, 2)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 78, said
    assert f"the hosts of launch.nodes=2 did not all meet at launch.rendezvous={place} within 2 s" in said
    assert "give the same command on each of them" in said


def test_a_rendezvous_on_the_own_loopback_is_refused(lab) -> None:
    """As where /etc/hosts leads the first host's name there."""
    command = [sys.executable, "-P", "-m", "trainer.elastic", "--nodes=2", "--rendezvous=localhost:29400", "1", "train"]
    done = subprocess.run(command, env=lab.environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 78, done.stderr
    assert "launch.rendezvous=localhost:29400 leads this host to 127.0.0.1, its own loopback" in done.stderr


def test_what_the_process_before_it_declared_is_over(lab) -> None:
    """Where a host joins, torch starts the others anew, uncounted, under the same launchers and with other ranks."""
    place = {"GEMCUTTER_EXIT_CODES": str(lab.folder), "RANK": "3", "LOCAL_RANK": "1"}
    for name in ("0", "0.beat", "1", "1.beat"):
        (lab.folder / name).write_text("75")
    command = [sys.executable, "-P", "-m", "trainer", "status"]
    subprocess.run(command, cwd=lab.folder, env=lab.environment | place, check=True)
    assert sorted(path.name for path in lab.folder.iterdir() if path.is_file()) == ["0", "0.beat"]
    command.append("nobody")
    assert subprocess.run(command, cwd=lab.folder, env=lab.environment | place, check=False).returncode == 79
    assert (lab.folder / "1").read_text() == "79"


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

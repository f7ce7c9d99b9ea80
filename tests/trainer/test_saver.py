"""Promises of saves: steps go on meanwhile, and a second place gets copies; one that fails is an incident, told and
tried again; earlier steps stay whole; too many end the run."""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import checkpoint


class SmallDisk:
    """A file system of a few megabytes that a test fills up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (2**20, 2**12):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def whole(folder: Path, step: int) -> bool:
    found = checkpoint.find(folder, step)
    assert found is not None
    found.verify()
    return True


def failures(running) -> list[dict]:
    return [event for event in running.events if event["event"] == "save_failed"]


def test_a_full_disk_ends_the_run_after_so_many_failures_and_loses_nothing(lab, inside, alone, disk) -> None:
    """The checkpoints on a disk of their own, with one committed step; three saves in a row fail."""
    lab.copy(alone, "full")
    folder = disk.folder / "full"
    (lab.folder / "runs" / "full" / "checkpoints").rename(lab.folder / "aside")
    subprocess.run(["cp", "-r", str(lab.folder / "aside"), str(folder)], check=True)
    disk.fill()
    keys = ("checkpoint.every=5", "checkpoint.retry_seconds=0.01", f"checkpoint.directory={disk.folder}")
    code, said = inside("full", "steps=60", *keys)
    assert code == 79
    assert "3 saves in a row failed" in said
    assert "No space left on device" in said
    assert f"Committed steps in {folder}: [20]. Free space there and start again" in said
    assert said.count("FAILED") == 3
    assert checkpoint.committed_steps(folder) == [20]
    assert whole(folder, 20)


def test_a_run_goes_on_once_there_is_space_again(lab, disk) -> None:
    folder = disk.folder / "recovers"
    disk.fill()
    running = lab.start(
        "recovers",
        "steps=200",
        "checkpoint.every=4",
        "checkpoint.max_failed=100",
        "checkpoint.retry_seconds=0.1",
        f"checkpoint.directory={disk.folder}",
    )
    running.until(lambda: failures(running), "a failed save")
    disk.free()
    running.wait()
    assert running.code == 0, running.said
    failed = failures(running)[0]
    assert failed["step"] == 4
    assert re.match(rf"{folder}/step-00000004/attempt-0001-[0-9a-f]{{12}} could not be written", failed["error"])
    assert "No space left on device" in failed["error"]
    saved = [event["step"] for event in running.events if event["event"] == "checkpoint"]
    assert saved[-1] == 200
    assert whole(folder, 200)
    assert [line["step"] for line in running.lines] == list(range(1, 201))  # training went on meanwhile


def test_the_whole_run_on_a_full_disk(lab, inside, disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default checkpoints lie beside the ledger, which then cannot grow either."""
    lab.folder = disk.folder
    running = lab.start(
        "here", "steps=100000", "checkpoint.every=5", "checkpoint.keep_last=1", "checkpoint.retry_seconds=0.1"
    )
    running.until(lambda: checkpoint.committed_steps(running.folder / "checkpoints"), "a checkpoint")
    disk.fill()
    assert running.wait().code == 79, running.said
    steps = checkpoint.committed_steps(running.folder / "checkpoints")
    assert steps
    assert whole(running.folder / "checkpoints", steps[-1])

    monkeypatch.chdir(disk.folder)
    disk.fill()
    code, said = inside("here", "steps=100000")  # nor can it start there
    assert code == 79
    assert re.search(r"runs/here/\S+ cannot be written \(No space left on device\): free space there", said)
    assert whole(running.folder / "checkpoints", steps[-1])


def test_retries_come_after_growing_pauses(lab, inside, alone, disk) -> None:
    """Between the checkpoints that are due."""
    disk.fill()
    pause = 0.2
    keys = ("checkpoint.every=150", f"checkpoint.retry_seconds={pause}", f"checkpoint.directory={disk.folder}")
    code, said = inside("patient", "steps=100000", *keys)
    assert code == 79
    assert said.count("FAILED") == 3
    first, second, third = [event["time"] for event in failures(lab.run("patient"))]
    assert second - first >= pause
    assert third - second >= 2 * pause
    assert "Committed steps in" in said
    assert "none" in said


def test_a_save_that_hits_a_limit_loses_nothing(inside, lab, alone) -> None:
    """The same without a disk of its own, so for anybody: files may not grow beyond half a megabyte."""
    lab.copy(alone, "limited")
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
    try:
        code, said = inside("limited", "steps=60", "checkpoint.every=5", "checkpoint.retry_seconds=0.01")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 79
    assert "3 saves in a row failed" in said
    assert "File too large" in said
    failed = [event for event in lab.run("limited").events if event["event"] == "save_failed"]
    assert failed[0]["step"] == 25
    assert all("step-000000" in event["error"] for event in failed)
    checkpoints = lab.folder / "runs" / "limited" / "checkpoints"
    assert checkpoint.committed_steps(checkpoints) == [20]
    assert whole(checkpoints, 20)

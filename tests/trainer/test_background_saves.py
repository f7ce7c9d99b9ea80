"""Promises of saves beside the steps: what is written is the state of its step, its failure is known at once, and one
copy is held; a second place gets every checkpoint that is due, and a run resumes from the newest of both."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from trainer import checkpoint
from trainer.checkpoint.store import Folder
from trainer.checkpoint.together import ElsewhereError, Tasks, Together

EVERY = ("checkpoint.every=5", "checkpoint.keep_last=100", "checkpoint.retry_seconds=0.05")


def tensors(place: object, step: int) -> dict[str, torch.Tensor]:
    found = checkpoint.find(place, step)
    assert found is not None
    return {name: checkpoint.read_tensor(found, name) for name in found.tensors}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch):
    """Do something around the writing of each payload to a folder."""
    plain = Folder.write

    def around(what) -> None:
        def changed(self: Folder, name: str, chunks: Iterable[bytes | memoryview]) -> None:
            with what(f"{self}/{name}"):
                plain(self, name, chunks)

        monkeypatch.setattr(Folder, "write", changed)

    return around


class Around:
    """Calls `before` with the file's path."""

    def __init__(self, before) -> None:
        self._before = before

    def __call__(self, path: str) -> Around:
        self._path = path
        return self

    def __enter__(self) -> None:
        self._before(self._path)

    def __exit__(self, *error: object) -> None:
        pass


# --- beside the steps


def test_steps_go_on_while_a_checkpoint_is_written_and_do_not_change_it(lab, inside, write) -> None:
    assert inside("plain", *EVERY)[0] == 0
    run = lab.run("slow")
    seen: list[int] = []

    def wait_for_three_more_steps(path: str) -> None:
        if "step-00000005" in path:
            deadline = time.monotonic() + 60
            while not run.lines or run.lines[-1]["step"] < 8:
                assert time.monotonic() < deadline, "no step was done meanwhile"
                time.sleep(0.005)
            seen.append(run.lines[-1]["step"])

    write(Around(wait_for_three_more_steps))
    assert inside("slow", *EVERY)[0] == 0
    assert seen
    for step in (5, 10, 15, 20):
        assert same(tensors(run.folder / "checkpoints", step), tensors(lab.folder / "runs/plain/checkpoints", step))


def test_one_copy_is_held_a_save_that_is_due_meanwhile_waits(lab, inside, write) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    class Counted(Around):
        def __enter__(self) -> None:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.1)  # longer than steps take

        def __exit__(self, *error: object) -> None:
            nonlocal at_once
            with lock:
                at_once -= 1

    write(Counted(None))
    assert inside("crowded", "steps=8", "checkpoint.every=1", "checkpoint.keep_last=100", "micro_batch=12")[0] == 0
    assert most == 1
    assert checkpoint.committed_steps(lab.run("crowded").folder / "checkpoints") == list(range(1, 9))


def test_a_failure_is_known_one_step_later(lab, inside, write) -> None:
    failed_at: list[float] = []

    def fail(path: str) -> None:
        if "step-00000005" in path:
            failed_at.append(time.time())
            raise OSError(5, "Input/output error")

    write(Around(fail))
    code, said = inside("fails", *EVERY, "steps=20")
    assert code == 0
    run = lab.run("fails")
    (event,) = [event for event in run.events if event["event"] == "save_failed"]
    assert event["step"] == 5
    assert "Input/output error" in event["error"]
    assert "the checkpoint of step 5 FAILED" in said
    # A line is written when the step after it is done, so at most the two of the steps under way lie between.
    assert len([line for line in run.lines if failed_at[0] < line["time"] < event["time"]]) <= 2
    steps = checkpoint.committed_steps(run.folder / "checkpoints")
    assert steps[-1] == 20
    assert 5 not in steps


SCRIPT = """
import os, sys
from trainer.checkpoint.store import Folder
from trainer.__main__ import main
write = Folder.write
def broken(self, name, chunks):
    if "rank-00001" in name and "step-00000004" in str(self):
        raise OSError(28, "No space left on device")
    write(self, name, chunks)
Folder.write = broken
sys.exit(main(sys.argv[1], sys.argv[2:]))
"""


def test_what_fails_on_another_process_is_an_incident_on_all(lab) -> None:
    """Two processes; the disk of the second is full at step 4."""
    script = lab.folder / "broken.py"
    script.write_text(SCRIPT)
    launcher = ("torch.distributed.run", "--nproc-per-node=2", str(script))
    keys = ("checkpoint.every=4", "checkpoint.keep_last=100", "checkpoint.retry_seconds=1000", "steps=12")
    run = lab.train("other", *keys, launcher=launcher)
    (failed,) = [event for event in run.events if event["event"] == "save_failed"]
    assert failed["step"] == 4
    assert "process 1 could not; its own output says why" in failed["error"]
    assert "process 1: [Errno 28] No space left on device" in run.said
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [8, 12]
    assert not list((run.folder / "checkpoints").glob("step-00000004/*"))  # a full disk needs the space


# --- the tasks of many processes


def test_nobody_goes_on_before_all_are_through() -> None:
    """Two processes in one, whose tasks end in any order."""
    done: list[str] = []
    gates = [threading.Event(), threading.Event()]

    def tasks(rank: int) -> Tasks:
        yield lambda: gates[rank].wait(10) and done.append(f"first of {rank}")
        yield (lambda: done.append("only the first's")) if rank == 0 else None
        done.append(f"end of {rank}")

    works = [Together(), Together()]
    for rank, work in enumerate(works):
        work.begin(tasks(rank))

    def agree() -> None:
        sums = [sum(each) for each in zip(*(work.flags(rank) for rank, work in enumerate(works)), strict=True)]
        for work in works:
            work.agreed(sums, 2)

    gates[1].set()
    works[1].task.result(10)
    agree()
    assert done == ["first of 1"]
    gates[0].set()
    works[0].task.result(10)
    agree()
    works[0].task.result(10)
    assert all(work.busy for work in works)
    agree()
    assert done[2:] == ["only the first's", "end of 0", "end of 1"]
    assert not any(work.busy for work in works)


def test_a_failure_reaches_every_process_and_says_whose_it_is() -> None:
    caught: list[Exception] = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    def tasks(rank: int) -> Tasks:
        try:
            yield fail if rank == 1 else (lambda: None)
        except (OSError, ElsewhereError) as error:
            caught.append(error)

    works = [Together() for _ in range(3)]
    for rank, work in enumerate(works):
        work.begin(tasks(rank))
    for work in works:
        work.task.exception(10)
    sums = [sum(each) for each in zip(*(work.flags(rank) for rank, work in enumerate(works)), strict=True)]
    for work in works:
        work.agreed(sums, 3)
    assert [type(error) for error in caught] == [ElsewhereError, OSError, ElsewhereError]
    assert "process 1 could not" in str(caught[0])


# --- the second place


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store in this process, which renames nothing."""
    MemoryFileSystem.store.clear()
    yield "memory://bucket"
    MemoryFileSystem.store.clear()


def test_the_bucket_gets_what_is_due_and_the_last_step(lab, inside, bucket) -> None:
    keys = (*EVERY, f"checkpoint.bucket={bucket}", "checkpoint.bucket_every=10", "steps=23")
    assert inside("twice", *keys)[0] == 0
    run = lab.run("twice")
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [5, 10, 15, 20, 23]
    assert checkpoint.committed_steps(f"{bucket}/twice") == [10, 20, 23]
    assert [event["step"] for event in run.events if event["event"] == "copied"] == [10, 20, 23]
    for step in (10, 20, 23):
        assert same(tensors(f"{bucket}/twice", step), tensors(run.folder / "checkpoints", step))


def test_without_its_disk_a_run_resumes_from_the_second_place(lab, inside) -> None:
    keys = (*EVERY, f"checkpoint.bucket={lab.folder}/second")
    run = lab.train("moves", *keys, "steps=20")
    shutil.rmtree(run.folder / "checkpoints" / "step-00000020")
    assert "attempt 2 starts at step 20" in lab.train("moves", *keys, "steps=22").said
    shutil.rmtree(run.folder)  # all that this host had
    code, said = inside("moves", *keys, "steps=24")
    assert code == 0, said
    assert "attempt 1 starts at step 22" in said


def test_what_is_broken_in_one_place_comes_from_the_other(lab, inside) -> None:
    keys = (*EVERY, f"checkpoint.bucket={lab.folder}/second")
    run = lab.train("heals", *keys)
    (file,) = (run.folder / "checkpoints" / "step-00000020").glob("*/rank-00000.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    code, said = inside("heals", *keys, "steps=22")
    assert code == 0, said
    assert "step 20 is BROKEN and was put aside" in said
    assert "attempt 2 starts at step 20" in said


def test_a_run_that_is_done_still_owes_its_last_step_to_the_second_place(lab, inside) -> None:
    """A job before ended after the commit and before the copy; this one has no step to do."""
    keys = (*EVERY, f"checkpoint.bucket={lab.folder}/second")
    run = lab.train("owes", *keys, processes=2)
    shutil.rmtree(lab.folder / "second" / "owes" / "step-00000020")
    code, said = inside("owes", *keys)  # one process copies what two have written
    assert code == 0, said
    assert checkpoint.committed_steps(lab.folder / "second" / "owes") == [5, 10, 15, 20]
    assert same(tensors(lab.folder / "second" / "owes", 20), tensors(run.folder / "checkpoints", 20))


def refuse(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the bucket answer so many uploads with 503."""
    left, plain = times, MemoryFileSystem.open

    def open_(self: MemoryFileSystem, path: str, mode: str = "rb", **options: object) -> object:
        nonlocal left
        if "w" in mode and left:
            left -= 1
            raise OSError("503 Service Unavailable")
        return plain(self, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", open_)


def test_a_bucket_that_is_away_is_an_incident_and_gets_its_copy_later(lab, inside, bucket, monkeypatch) -> None:
    refuse(monkeypatch, 2)
    code, _ = inside("away", *EVERY, f"checkpoint.bucket={bucket}", "steps=40")
    assert code == 0
    run = lab.run("away")
    failed = [event for event in run.events if event["event"] == "save_failed"]
    assert len(failed) == 2
    assert all("503 Service Unavailable" in event["error"] and "memory://" in event["place"] for event in failed)
    assert checkpoint.committed_steps(f"{bucket}/away")[-1] == 40
    assert checkpoint.committed_steps(run.folder / "checkpoints") == list(range(5, 41, 5))


def test_a_bucket_that_stays_away_ends_the_run_and_the_disk_has_all(lab, inside, bucket, monkeypatch) -> None:
    refuse(monkeypatch, 10**9)
    code, said = inside("gone", *EVERY, f"checkpoint.bucket={bucket}", "steps=100000")
    assert code == 79
    assert "3 saves in a row failed" in said
    assert "Committed steps in memory://bucket/gone: none" in said
    assert checkpoint.committed_steps(lab.run("gone").folder / "checkpoints")


def test_a_step_is_kept_until_it_is_copied(lab, inside, bucket, monkeypatch) -> None:
    """Retention would take step 5 from the disk while the bucket still has to get it."""
    plain, run = MemoryFileSystem.open, lab.run("held")

    def open_(self: MemoryFileSystem, path: str, mode: str = "rb", **options: object) -> object:
        if "w" in mode and "step-00000005" in path:
            deadline = time.monotonic() + 60
            while checkpoint.committed_steps(run.folder / "checkpoints")[-1] < 15:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        return plain(self, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", open_)
    keys = ("checkpoint.every=5", "checkpoint.keep_last=1", f"checkpoint.bucket={bucket}", "checkpoint.bucket_every=5")
    assert inside("held", *keys, "steps=40")[0] == 0
    assert 5 in [event["step"] for event in run.events if event["event"] == "copied"]
    steps = checkpoint.committed_steps(run.folder / "checkpoints")
    assert 5 not in steps
    assert steps[-1] == 40

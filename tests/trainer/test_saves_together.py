"""Promises of saves where a run is about to end or to go back, and where nobody reads what they say."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conf.exits import DataError
from conf.processes import speak_on
from conf.schema import Job
from tests.trainer.poisoned import poison
from tests.trainer.threads import on_each
from trainer import checkpoint, saver
from trainer.checkpoint.store import Folder
from trainer.report import Stopwatch
from trainer.saver import Saver


@dataclass
class Run:
    """Of a run what saves need."""

    step: int = 0
    attempt: int = 1
    in_a_row: int = 0
    digested: int = 0
    recent: list[Any] = field(default_factory=list)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"a": torch.full((3,), float(self.step))}

    def state(self) -> dict[str, Any]:
        return {"step": self.step}


class Place(Folder):
    """A folder that does something before it writes."""

    def __init__(self, path: Path, before: Callable[[str], None] = lambda name: None) -> None:
        super().__init__(path)
        self._before = before

    def within(self, folder: str) -> Place:
        return Place(self.path / folder, self._before)

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        self._before(f"{self}/{name}")
        super().write(name, chunks)


def refuse(name: str) -> None:
    raise OSError(28, "No space left on device")


class Saves:
    """A saver of one process of several."""

    def __init__(self, backend: Any, directory: Folder, bucket: Folder | None = None, **keys: Any) -> None:
        self.run, self.backend, self.events = Run(), backend, []
        job = Job()
        job.checkpoint.keep_last = 100
        for name, value in keys.items():
            setattr(job.checkpoint, name, value)
        parts: Any = SimpleNamespace(backend=backend, directory=SimpleNamespace(checkpoints=directory, bucket=bucket))
        report: Any = SimpleNamespace(event=lambda event, **facts: self.events.append((event, facts.get("step"))))
        run: Any = self.run
        self.saver = Saver(job, run, parts, report, Stopwatch())

    def step(self) -> None:
        """One step, as `fit` does it."""
        self.run.step += 1
        self.agree()

    def save_beside_a_copy(self) -> None:
        """Step 1 is committed and on its way to the bucket, and step 2 is being saved."""
        self.step()
        self.saver.save()
        while self.saver.places[0].work.busy or not self.saver.places[1].work.busy:
            self.agree()
        self.step()
        self.saver.save()

    def agree(self) -> None:
        time.sleep(0)  # a process of its own would not keep the threads that save from getting on
        self.saver.agreed(self.backend.agree(self.saver.flags()))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those of a saver, which are not made."""
    made: list[float] = []
    monkeypatch.setattr(saver, "time", SimpleNamespace(monotonic=time.monotonic, sleep=made.append))
    return made


def committed(path: Path) -> list[int]:
    return checkpoint.committed_steps(path)


# --- the last step


def test_the_last_step_is_tried_at_once_whatever_failed_before(tmp_path: Path, pauses: list[float]) -> None:
    left = [refuse]
    place = Place(tmp_path, lambda name: left.pop()(name) if left else None)

    def work(alone: Any) -> None:
        saves = Saves(alone, place)
        saves.step()
        saves.saver.save()
        while saves.saver.places[0].work.busy:
            saves.step()
        assert saves.saver.places[0].failed == 1
        saves.step()
        saves.saver.finish()

    assert on_each(1, work) == [None]
    assert len(committed(tmp_path)) == 1
    assert pauses == []


def test_between_tries_of_the_last_step_are_pauses_that_grow(tmp_path: Path, pauses: list[float]) -> None:
    def work(alone: Any) -> None:
        saves = Saves(alone, Place(tmp_path, refuse), max_failed=4, retry_seconds=3.0)
        saves.step()
        saves.saver.finish()

    (error,) = on_each(1, work)
    assert isinstance(error, DataError)
    assert "4 saves in a row failed" in str(error)
    assert pauses == [1.0, 2.0, 3.0]  # none after the last


# --- giving up on one place


def test_a_bucket_that_is_given_up_ends_the_run_once_a_save_under_way_is_there(tmp_path: Path) -> None:
    disk, begun, go_on = tmp_path / "disk", threading.Event(), threading.Event()

    def wait_at_2(name: str) -> None:
        if "step-00000002" in name:
            begun.set()
            assert go_on.wait(60)

    def refuse_late(name: str) -> None:
        assert begun.wait(60)
        refuse(name)

    def work(alone: Any) -> None:
        saves = Saves(alone, Place(disk, wait_at_2), Place(tmp_path / "bucket", refuse_late), every=1, max_failed=1)
        saves.save_beside_a_copy()
        while saves.saver.places[1].failed == 0:
            saves.agree()
        saves.agree()  # it is given up, and step 2 still on its way
        go_on.set()
        while True:
            saves.agree()

    (error,) = on_each(1, work)
    assert isinstance(error, DataError), error
    assert "1 saves in a row failed" in str(error)
    assert str(tmp_path / "bucket") in str(error)
    assert committed(disk) == [1, 2]


def test_a_bucket_that_is_given_up_ends_a_run_that_saves_without_a_pause(tmp_path: Path) -> None:
    """Where each step is saved, the directory is at work whenever anybody looks."""
    slow = Place(tmp_path / "disk", lambda name: time.sleep(0.02))
    steps = []

    def work(alone: Any) -> None:
        saves = Saves(alone, slow, Place(tmp_path / "bucket", refuse), every=1, max_failed=1)
        for _ in range(50):
            saves.step()
            steps.append(saves.run.step)
            saves.saver.save()

    (error,) = on_each(1, work)
    assert isinstance(error, DataError), error
    assert str(tmp_path / "bucket") in str(error)
    assert committed(tmp_path / "disk") == steps[:-1]  # what was under way is there


def test_the_last_step_is_committed_before_a_bucket_is_given_up(tmp_path: Path) -> None:
    """What the bucket was getting when the run had to end fails, while the disk still gets the step before the last."""
    disk, last, refused = tmp_path / "disk", threading.Event(), threading.Event()

    def wait_at_2(name: str) -> None:
        assert "step-00000002" not in name or refused.wait(60)

    def refuse_late(name: str) -> None:
        assert last.wait(60)
        refused.set()
        refuse(name)

    def work(alone: Any) -> None:
        saves = Saves(alone, Place(disk, wait_at_2), Place(tmp_path / "bucket", refuse_late), every=1, max_failed=1)
        saves.save_beside_a_copy()
        saves.step()
        last.set()
        saves.saver.finish()

    (error,) = on_each(1, work)
    assert isinstance(error, DataError), error
    assert committed(disk) == [1, 2, 3]


# --- nobody reads


def test_a_process_that_cannot_say_what_failed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the second of two is full, and the terminal of both is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.FileIO(writing, "wb"), write_through=True))
    speak_on()

    def work(process: Any) -> list[Any]:
        second = process.processes.rank == 1
        saves = Saves(process, Place(tmp_path, refuse) if second else Folder(tmp_path), retry_seconds=1000.0)
        saves.step()
        saves.saver.save()
        saves.saver._wait_for(saves.saver.places[0])
        return saves.events

    assert on_each(2, work) == [[("save_failed", 1)]] * 2


# --- what a run may go back to


@pytest.fixture
def poisoned(inside, lab, monkeypatch: pytest.MonkeyPatch):
    """Training with some data poisoned and one checkpoint kept. Gives the run, ended well."""

    def run(run_id: str, what: str, *changes: str):
        with monkeypatch.context() as patch:
            poison(patch, what)
            keys = ("checkpoint.keep_last=1", "optim.max_skipped=3", "optim.schedule=constant", "optim.warmup_steps=0")
            code, said = inside(run_id, *keys, "optim.peak_lr=1e-3", "spike.margin=2", *changes)
        assert code == 0, said
        return lab.run(run_id)

    return run


def went_back_to(run) -> list[int]:
    return [event["to_step"] for event in run.events if event["event"] == "rollback"]


def test_a_run_that_ends_amid_skipped_steps_keeps_the_checkpoint_before_them(poisoned) -> None:
    """The next start may meet one too many, and goes back to before the first of them."""
    run = poisoned("amid", "5-6:loss", "checkpoint.every=2", "steps=6")
    assert committed(run.folder / "checkpoints")[-2:] == [4, 6]


def test_a_save_under_way_removes_nothing_while_steps_are_skipped(poisoned, lab, monkeypatch) -> None:
    """Step 8 is committed when the run is about to go back, further than to step 8."""
    write, events = Folder.write, lab.folder / "runs" / "slow" / "events.jsonl"

    def wait_for_step_10(self: Folder, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        deadline = time.monotonic() + 60
        while "step-00000008" in str(self) and not _said(events, "skipped", 10):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        write(self, name, chunks)

    monkeypatch.setattr(Folder, "write", wait_for_step_10)
    run = poisoned("slow", "9-11:loss", "checkpoint.every=4", "steps=14")
    assert went_back_to(run) == [4]


def _said(events: Path, event: str, step: int) -> bool:
    return any(f'"event": "{event}", "step": {step},' in line for line in events.read_text().splitlines())


def test_the_checkpoint_before_some_skipped_steps_stays_as_long_as_they_may_be_too_many(poisoned) -> None:
    """Four of six make the run go back, and steps between them are saved."""
    run = poisoned(
        "between", "7-8:steep,11-12:steep", "checkpoint.every=1", "spike.sigmas=8", "spike.window=8", "steps=14"
    )
    (back,) = went_back_to(run)
    assert back < 7

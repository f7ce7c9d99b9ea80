"""`gemcutter train` started as a user starts it, each process of which can be found, signalled and watched."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf import schema
from tests.trainer.conftest import SMALL, Corpus, Recorded, documents, environment, make_corpus, read_lines
from trainer import checkpoint

_MARK = "GEMCUTTER_CHAOS"  # names the attempt in the environment of each of its processes
_WATCHED = Path(__file__).parent / "watched"


class Ended(Exception):
    """The job ended before what was waited for."""


@dataclass
class Job:
    """One start of the command, in a process group of its own."""

    process: subprocess.Popen[bytes]
    mark: bytes
    run: Recorded
    log: Path
    codes_path: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def processes(self) -> dict[int, list[str]]:
        """Every live process that descends from the command, whoever its parent is now, with its command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if self.mark in (folder / "environ").read_bytes():  # that of a zombie is empty
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:  # it has ended, or belongs to somebody else
                continue
        return found

    def elastic(self) -> list[int]:
        return [pid for pid, words in self.processes().items() if "trainer.elastic" in words]

    def ranks(self) -> list[int]:
        """The training processes."""
        return sorted(pid for pid, words in self.processes().items() if "trainer" in words)

    def claimed(self) -> bool:
        """Whether a process of the job holds the run directory."""
        lock = str(self.run.folder / ".lock")
        for rank in self.ranks():
            try:
                if lock in [os.readlink(file) for file in Path(f"/proc/{rank}/fd").iterdir()]:
                    return True
            except OSError:  # it has ended, or closed a file
                continue
        return False

    def codes(self) -> dict[str, list[int]]:
        """Exit codes that the kernel gave of those that ended so far: of `elastic` and of `ranks`."""
        ended = read_lines(self.codes_path)
        return {
            "elastic": [line["code"] for line in ended if "trainer.elastic" in line["args"]],
            "ranks": [line["code"] for line in ended if "trainer" in line["args"]],
        }

    def until(self, happened: Callable[[], Any], what: str, seconds: float = 90) -> Any:
        """What `happened` gives, once that is true. Raises Ended where the command ends before."""
        deadline = time.monotonic() + seconds
        while not (result := happened()):
            if self.process.poll() is not None:
                raise Ended(what)
            assert time.monotonic() < deadline, f"{seconds} s without {what}: {self.said}"
            time.sleep(0.001)
        return result

    def answers(self, pid: int, number: signal.Signals) -> bool:
        """Whether a process has a handler for a signal, or lets it wait until it has."""
        return bool(_signals(pid, "SigCgt") & 1 << number - 1 or _signals(pid, "SigBlk") & 1 << number - 1)

    def gone(self, seconds: float = 30) -> tuple[float, int]:
        """Wait until no process is left: the seconds that took, and how many were left in the end, which are killed."""
        began = time.monotonic()
        self.process.poll()
        while left := self.processes():
            self.process.poll()
            if time.monotonic() - began > seconds:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return seconds, len(left)
            time.sleep(0.005)
        self.process.wait()
        return time.monotonic() - began, 0


def _signals(pid: int, kind: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.split(f"{kind}:")[1].split()[0], 16)


class Site:
    """A folder with token shards where runs are started."""

    def __init__(self, folder: Path, corpus: Corpus | None = None) -> None:
        self.folder = folder
        self.corpus = corpus or make_corpus(folder / "corpus", documents(400), 512)

    def start(self, run_id: str, processes: int, *changes: str) -> Job:
        """`gemcutter train` of a small model; the same arguments resume it."""
        mark = f"{_MARK}={uuid.uuid4().hex}"
        log, codes = (self.folder / f"{mark[-8:]}.{kind}" for kind in ("log", "codes"))
        keys = (
            *SMALL,
            *no_restarts(),
            f"launch.processes={processes}",
            *self.corpus.overrides,
            f"run_id={run_id}",
            *changes,
        )
        surroundings = environment(self.folder)
        surroundings["PYTHONPATH"] = f"{_WATCHED}:{surroundings['PYTHONPATH']}"
        surroundings |= {_MARK: mark.partition("=")[2], "GEMCUTTER_CHAOS_CODES": str(codes)}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "launch", "train", *keys],
                cwd=self.folder,
                env=surroundings,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Job(process, mark.encode(), self.run(run_id), log, codes)

    def finish(self, run_id: str, processes: int, *changes: str) -> Recorded:
        """Start it and let it end."""
        job = self.start(run_id, processes, *changes)
        assert job.process.wait(timeout=300) == 0, job.said
        return job.run

    def run(self, run_id: str) -> Recorded:
        return Recorded(self.folder / "runs" / run_id)


def no_restarts() -> list[str]:
    """What keeps a launcher from starting anew what was killed, where it would."""
    budgets = getattr(schema.Launch(), "restarts", None)
    keys = [] if budgets is None else dataclasses.fields(budgets)
    return [f"launch.restarts.{key.name}=0" for key in keys if isinstance(getattr(budgets, key.name), int)]


def committed(run: Recorded) -> int:
    """The newest committed step; 0 where there is none."""
    return max(checkpoint.committed_steps(run.folder / "checkpoints"), default=0)


def starts(run: Recorded) -> list[int]:
    """The steps at which attempts began."""
    return [event["step"] for event in run.events if event["event"] == "start"]


def steps_since(run: Recorded, before: int) -> list[int]:
    """The steps of the attempt that began after so many."""
    attempts = [event["attempt"] for event in run.events if event["event"] == "start"][before:]
    return [line["step"] for line in run.lines if line["attempt"] in attempts]


def bits(run: Recorded) -> dict[str, bytes]:
    """Every byte of every tensor of the latest checkpoint, which is verified."""
    found = checkpoint.find(run.folder / "checkpoints")
    assert found is not None
    found.verify()
    return {name: tensor.numpy().tobytes() for name, tensor in run.tensors().items()}


def counted(figure: str, ours: int, bar: int, **more: Any) -> dict[str, Any]:
    """A row where all of so many must be met."""
    return {"figure": figure, "ours": ours, "bar": bar, "met": ours == bar, **more}

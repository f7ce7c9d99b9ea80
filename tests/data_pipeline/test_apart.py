"""A document that hangs, eats the memory or crashes the extractor costs itself, counted, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from conf.exits import DataError
from data_pipeline.document import Record
from data_pipeline.extract import Apart, Outcome, apart, of_this_process

GOOD = Record("<p>Good.</p>", "html", "good")
DEEP = Record("<div>" * 1_000_000, "html", "deep")  # takes seconds
LARGE = Record("<p>" + "a" * 50_000_000, "html", "large")
BINARY = Record(b"\0\1", "html", "binary")
SILENT = Record(b"x = 1", "docstrings", "silent")


@pytest.fixture
def reader() -> Iterator[Apart]:
    with closing(Apart(seconds=1.0, memory=256 << 20)) as reader:
        yield reader


def child_of(process: int) -> int:
    """The child that extracts for a process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == process and b"data_pipeline.extract.child" in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"{process} has no such child")


def gone(process: int) -> bool:
    """Whether the process ends, soon."""
    for _ in range(3000):
        try:
            if (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def reasons(outcomes: list[Outcome]) -> list[str]:
    return [outcome.reason for outcome in outcomes]


def test_what_is_read_apart_is_what_is_read_here(reader: Apart) -> None:
    records = [
        Record("<p>a \ud800 b</p>", "html", "surrogate"),
        Record("<p>Größe</p>".encode("iso-8859-1"), "html", "charset", charset="iso-8859-1"),
        Record(b'"""Doc."""', "docstrings", "doc"),
        Record("Plain.", "text", "plain"),
        *(GOOD, BINARY, SILENT),
        *[Record(f"<p>{n}</p>", "html", "many") for n in range(2 * apart.BATCH_RECORDS)],
    ]
    outcomes = reader.read_all(records)
    assert outcomes == [apart.read_here(record) for record in records]
    assert reasons(outcomes[4:7]) == ["", "unreadable", ""]
    assert outcomes[6].extracted is None


@pytest.mark.parametrize(
    ("record", "seconds", "memory", "reason"),
    [
        (DEEP, 0.3, 1 << 30, "extract_timeout"),
        (LARGE, 30.0, 128 << 20, "extract_memory"),
        (LARGE, 30.0, 32 << 20, "extract_memory"),  # not even the message fits
    ],
)
def test_a_document_over_the_limits_is_dropped_with_its_reason_and_alone(
    monkeypatch: pytest.MonkeyPatch, record: Record, seconds: float, memory: int, reason: str
) -> None:
    monkeypatch.setattr(apart, "PATIENCE", 1000)  # only the processor's time counts
    with closing(Apart(seconds, memory)) as reader:
        outcomes = reader.read_all([GOOD, record, GOOD])
    assert reasons(outcomes) == ["", reason, ""]
    assert outcomes[0] == outcomes[2] == apart.read_here(GOOD)


def test_a_child_that_sleeps_is_given_up_too(reader: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.read_all([GOOD])
    monkeypatch.setattr(apart, "PATIENCE", 1)
    os.kill(child_of(os.getpid()), signal.SIGSTOP)
    assert reasons(reader.read_all([GOOD, GOOD])) == ["", ""]  # whoever stopped it, the document is not at fault


def test_a_killed_child_costs_no_document(reader: Apart) -> None:
    first = reader.read_all([GOOD])
    os.kill(child_of(os.getpid()), signal.SIGKILL)
    assert reader.read_all([GOOD, GOOD]) == [*first, *first]


def test_answers_that_nobody_waited_for_are_not_given_to_others(reader: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = apart._Child.answer

    def interrupted(self: apart._Child, seconds: float) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(apart._Child, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reader.read_all([GOOD, GOOD])
    monkeypatch.setattr(apart._Child, "answer", answer)
    assert reader.read_all([BINARY, GOOD]) == [apart.read_here(BINARY), apart.read_here(GOOD)]


def read_good(seconds: float) -> tuple[int, int, list[Outcome]]:
    outcomes = of_this_process(seconds).read_all([GOOD])
    return os.getpid(), child_of(os.getpid()), outcomes


def test_workers_of_a_pool_read_apart_and_leave_no_orphan() -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(read_good, [1.0, 1.0]))
    assert [reasons(outcomes) for _, _, outcomes in done] == [[""], [""]]
    assert all(gone(child) for _, child, _ in done)


def report_good(connection: Connection) -> None:
    connection.send(read_good(1.0))
    connection.recv()


def test_a_daemonic_worker_reads_apart_and_its_child_dies_with_it() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=report_good, args=(theirs,), daemon=True)
    worker.start()
    _, child, outcomes = ours.recv()
    assert reasons(outcomes) == [""]
    worker.kill()
    assert gone(child)
    worker.join()


def test_a_child_outlives_no_starter_that_was_killed() -> None:
    program = (
        "from data_pipeline.document import Record; from data_pipeline.extract import Apart\n"
        "a = Apart(); a.read_all([Record('<p>x', 'html', 'x')]); print(a._child._process.pid, flush=True); input()"
    )
    starter = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        starter.kill()
    assert gone(child)


def test_a_child_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "resiliparse.py").write_text("raise ImportError('no such wheel')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"does not start \(exit code 1, 3 times\)"):
        Apart().read_all([GOOD])

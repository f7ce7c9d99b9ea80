"""A curation that was stopped goes on where it was, uses again what still holds, and nothing that does not."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.exits import ConfigError, DataError
from conf.schema import Job
from data_pipeline.curate import curate, publish, reading
from data_pipeline.curate import job as curation
from data_pipeline.curate.road import FIRST_NEW
from data_pipeline.engine import stage
from data_pipeline.lock import locked
from tests.data_pipeline.invented_collection import (
    FOOTER,
    PRIVATE,
    UNSTORABLE,
    collect,
    digests,
    job_of,
    jsonl,
    rows,
    text,
    traces,
)

ROOT = Path(__file__).parents[2]

# A driver that kills itself at a moment: when the nth task of a stage begins or has written its files, when the first
# file beside the parts is written, or when the text has just appeared. Says in a log which tasks it began.
DRIVER = """
import os, signal, sys
from types import SimpleNamespace
from pathlib import Path
from data_pipeline.curate import curate, job as curation, publish, road
from data_pipeline.engine import stage
from tests.data_pipeline.invented_collection import job_of

folder, moment, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
begun = []

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def perform(work, stage_folder, numbered, performed=stage._perform):
    name = stage_folder.name.split("-")[0]
    begun.append(name)
    with (folder / "log").open("a") as log:
        log.write(f"{name} {numbered[0]}\\n")
    if begun.count(name) == number and moment == "begins " + name:
        kill()
    if begun.count(name) == number and moment == "ends " + name:
        stage.sync = kill
    return performed(work, stage_folder, numbered)

stage._perform = perform
stage.sync = publish.sync = lambda path: None
if moment == "publishes":
    road.write_json = kill
if moment == "has published":
    curation.shutil = SimpleNamespace(rmtree=kill)
curate(job_of(folder, folder / "out"))
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the collection, and in `fresh` what is made of it undisturbed."""
    folder = tmp_path_factory.mktemp("collected")
    collect(folder)
    job = job_of(folder, folder / "fresh")
    job.curate.work = str(folder / "work")
    curate(job)
    return folder


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written: only a power cut does, and a disk may be busy for seconds."""
    monkeypatch.setattr(stage, "sync", lambda path: None)
    monkeypatch.setattr(publish, "sync", lambda path: None)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The stages and numbers of the tasks that are begun."""
    found: list[tuple[str, int]] = []
    perform = stage._perform

    def noted(work: Any, folder: Path, numbered: tuple[int, Any]) -> int:
        found.append((folder.name.split("-")[0], numbered[0]))
        return perform(work, folder, numbered)

    monkeypatch.setattr(stage, "_perform", noted)
    return found


def again(job: Job, output: Path) -> dict[str, str]:
    """Curate into another folder; what lies there then."""
    job.curate.output = str(output)
    curate(job)
    return digests(output)


# ---- stopped ---------------------------------------------------------------------------------------------------------

MOMENTS = [("ends read", 7), ("begins judge", 4), ("ends write", 3), ("publishes", 1)]


def test_a_driver_killed_again_and_again_gives_the_same_bytes_and_repeats_only_what_was_under_way(
    collected: Path, tmp_path: Path, begun: list[tuple[str, int]]
) -> None:
    (tmp_path / "made").symlink_to(collected / "made")
    for moment, number in [*MOMENTS, ("has published", 1)]:
        command = [sys.executable, "-c", DRIVER, str(tmp_path), moment, str(number)]
        assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL, moment
        assert (tmp_path / "out").exists() == (moment == "has published")
        assert not traces(tmp_path / "out.work", [*UNSTORABLE, *PRIVATE]), moment
    assert curate(job_of(tmp_path, tmp_path / "out"))["reused"]
    assert not begun
    assert digests(tmp_path / "out") == digests(collected / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "made", "out"]
    times = Counter((tmp_path / "log").read_text().splitlines())
    assert {times[f"read {n}"] for n in range(21)} == {1, 2}
    assert sum(times.values()) <= len(times) + 3  # of the moments three hit a task


def descendants(pid: int) -> dict[int, str]:
    """Processes that a process started, and those that these started, with their command lines."""
    parents: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            parents[int(folder.name)] = parent, (folder / "cmdline").read_text().replace("\0", " ")
    found: dict[int, str] = {}
    while more := {one: line for one, (of, line) in parents.items() if (of == pid or of in found) and one not in found}:
        found |= more
    return found


def test_a_stop_signal_ends_a_curation_soon_and_leaves_no_worker(tmp_path: Path) -> None:
    """Of the command, while workers read web pages by processes of their own."""
    for n in range(40):
        jsonl(tmp_path / "in" / f"{n}.html", [f"<html><body><p>{text(n)}</p></body></html>"])
    overrides = [
        f"curate.sources=[{{paths: ['{tmp_path}/in/*.html']}}]", f"curate.output={tmp_path}/out", "curate.workers=2",
        "curate.slice_bytes=3000",
    ]  # fmt: skip
    command = [sys.executable, "-m", "data_pipeline", "curate", *overrides]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    try:
        while not any("extract.child" in line for line in descendants(driver.pid).values()):
            assert driver.poll() is None, driver.stderr and driver.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        left = descendants(driver.pid)
        driver.terminate()
        driver.communicate(timeout=10)
    finally:
        driver.kill()
        driver.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("held", ["work", "out.partial"])
def test_of_two_starts_over_one_folder_the_second_is_refused(
    collected: Path, tmp_path: Path, begun: list[tuple[str, int]], held: str
) -> None:
    job = job_of(collected, tmp_path / "out")
    job.curate.work = str(tmp_path / "work")
    key = {"work": "curate.work", "out.partial": "curate.output"}[held]
    with (
        locked(tmp_path / held, key),
        pytest.raises(
            ConfigError, match=rf"another process is at work on .*{held}: wait for it, or choose another {key}"
        ),
    ):
        curate(job)
    assert not begun
    assert not (tmp_path / "out").exists()


def test_who_finds_the_text_published_by_whom_it_waited_for_takes_it(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[tuple[str, int]]
) -> None:
    job = job_of(collected, tmp_path / "out")
    job.curate.work = str(collected / "work")

    @contextlib.contextmanager
    def late(folder: Path, key: str) -> Iterator[None]:
        """The lock, which another had until it published."""
        monkeypatch.setattr(curation, "locked", locked)
        assert not curate(job)["reused"]
        with locked(folder, key):
            yield

    monkeypatch.setattr(curation, "locked", late)
    assert curate(job)["reused"]
    assert digests(tmp_path / "out") == digests(collected / "fresh")


# ---- what is used again ----------------------------------------------------------------------------------------------


def _limits(job: Job) -> None:
    for sets in job.curate.thresholds.values():
        sets["gopher"] = {"min_words": 3, "max_words": 185}
    job.curate.language_confidence, job.curate.languages = 0.2, ["en", "de"]


def _more_limits(job: Job) -> None:
    job.curate.harm.most_words, job.curate.private.most_items = 0, 1
    job.curate.duplicates.similarity, job.curate.duplicates.repeated_in = None, None
    job.curate.decontaminate.action = "cut"


@pytest.mark.parametrize("change", [_limits, _more_limits])
def test_other_limits_need_no_second_reading(
    collected: Path, tmp_path: Path, begun: list[tuple[str, int]], change: Callable[[Job], None]
) -> None:
    job = job_of(collected, tmp_path / "out")
    job.curate.work = str(collected / "work")
    change(job)
    found = again(job, tmp_path / "other")
    assert {name for name, _ in begun} & {"judge", "write"} == {"judge", "write"}
    assert "read" not in {name for name, _ in begun}
    job.curate.work = None
    assert again(job, tmp_path / "fresh") == found != digests(collected / "fresh")
    assert ("read", 0) in begun


def test_of_earlier_text_too_nothing_is_read_again_for_other_limits(
    collected: Path, tmp_path: Path, begun: list[tuple[str, int]]
) -> None:
    job = job_of(collected, tmp_path / "out")
    job.curate.work = str(tmp_path / "work")
    job.curate.sources = job.curate.sources[:1]
    job.curate.sources[0].paths = [jsonl(tmp_path / "new.jsonl", [{"text": text(n)} for n in (700, 701, 1, 2)])]
    job.curate.duplicates.earlier = [str(collected / "fresh")]
    curate(job)
    assert ("earlier", 0) in begun
    begun.clear()
    _limits(job)
    again(job, tmp_path / "other")
    assert {"read", "earlier", "benchmarks"}.isdisjoint(name for name, _ in begun)


@pytest.mark.parametrize("what", ["sources", "key"])
def test_of_other_sources_or_another_key_nothing_is_used_again(
    collected: Path, tmp_path: Path, begun: list[tuple[str, int]], what: str
) -> None:
    """Though the file of the key is called the same, and this process loaded it before."""
    secret = tmp_path / "key"
    secret.write_bytes((collected / "made" / "key").read_bytes())
    job = job_of(collected, tmp_path / "out")
    job.curate.work, job.curate.private.key_file = str(tmp_path / "work"), str(secret)
    job.curate.decontaminate.benchmarks = {}  # they would give the process other files to load, too
    again(job, tmp_path / "first")
    before = Counter(begun)
    begun.clear()
    if what == "key":
        secret.write_bytes(b"another secret, which nobody has seen")
    else:
        job.curate.sources[1].license = "MIT"
    found = again(job, tmp_path / "other")
    assert Counter(begun) == before
    marks = [
        {word for row in rows(tmp_path / name) for word in row["text"].split() if word.startswith("<EMAIL-")}
        for name in ("first", "other")
    ]
    assert (marks[0] == marks[1]) == (what == "sources")
    job.curate.work = str(tmp_path / "fresh.work")
    assert again(job, tmp_path / "fresh") == found


class Stopped(Exception):
    """Somebody stops the curation."""


@pytest.mark.parametrize("size", ["same", "other"])
def test_a_file_changed_between_two_starts_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    collect(tmp_path)
    job = job_of(tmp_path, tmp_path / "out")
    read = reading.read

    def stopped(task: reading.Read, folder: Path) -> dict[str, Any]:
        if task.number == FIRST_NEW + 5:
            raise Stopped
        return read(task, folder)

    monkeypatch.setattr(reading, "read", stopped)
    with pytest.raises(Stopped):
        curate(job)
    monkeypatch.setattr(reading, "read", read)
    assert len(list((tmp_path / "out.work").glob("read-*/00000[0-4]"))) == 5
    web = tmp_path / "made" / "web.jsonl"
    changed = {"same": "Something of this page", "other": "All of this page"}[size]
    before = web.stat().st_size
    web.write_text(web.read_text().replace("Everything on this page", changed.ljust(23 * (size == "same"), "s")))
    assert (web.stat().st_size == before) == (size == "same")
    found = again(job, tmp_path / "out")
    kept = [row["text"] for row in rows(tmp_path / "out")]
    assert not any("Everything on this page" in one for one in kept)
    assert sum(changed in one for one in kept) == 1
    assert again(job, tmp_path / "fresh") == found


def test_a_file_changed_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though its size is the same, and each task saw a whole file."""
    collect(tmp_path)
    job = job_of(tmp_path, tmp_path / "out")
    web, read = tmp_path / "made" / "web.jsonl", reading.read

    def changing(task: reading.Read, folder: Path) -> dict[str, Any]:
        if task.number == FIRST_NEW + 3:
            web.write_text(web.read_text().replace("page", "note"))
        return read(task, folder)

    monkeypatch.setattr(reading, "read", changing)
    with pytest.raises(DataError, match=r"web\.jsonl of source 'web' changed while it was being read: .*start again"):
        curate(job)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(reading, "read", read)
    curate(job)
    assert sum(FOOTER.replace("page", "note") in row["text"] for row in rows(tmp_path / "out")) == 1


def test_damaged_facts_are_named_with_what_to_do_and_cost_one_task(
    collected: Path, tmp_path: Path, begun: list[tuple[str, int]]
) -> None:
    job = job_of(collected, tmp_path / "out")
    job.curate.work = str(tmp_path / "work")
    again(job, tmp_path / "first")
    begun.clear()
    [facts] = (tmp_path / "work").glob("read-*/000003/facts.json")
    for content in (b"", b'{"parts": [{"by', b"\xff\xfe\0", b"[" * 100_000, b"[]", b"null"):
        facts.write_bytes(content)
        with pytest.raises(DataError, match=r"000003/facts\.json cannot be read .*: delete the folder .*000003, then"):
            again(job, tmp_path / "second")
    assert not begun
    facts.unlink()
    for left in facts.parent.iterdir():
        for path in left.iterdir():
            path.unlink()
        left.rmdir()
    facts.parent.rmdir()
    assert again(job, tmp_path / "second") == digests(collected / "fresh")
    assert begun == [("read", 3)]

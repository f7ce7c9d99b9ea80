"""What the files of a run say of it now.

metrics.jsonl may have millions of lines: its end is read, and what the ledger needs is found by bisection.
"""

from __future__ import annotations

import fcntl
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from conf.exits import DIVERGED, HANG
from conf.json_lines import read_lines
from trainer.report.goodput import Ledger, Line, goodput, unsettled
from trainer.report.stopwatch import boot_id, boot_seconds

# Events that are no bad news; what is not known here is shown.
QUIET = {"start", "time", "init", "changed", "checkpoint", "copied", "profile", "stop", "end"}
_LATEST_BYTES = 64 * 1024
_LATEST_LINES = 20  # whose median is the speed now
_RECENT_SECONDS = 120.0  # a run on another host whose files changed that lately is taken to be at work


@dataclass(frozen=True)
class Status:
    """A run at a glance. What is not known is None.

    state       starting, running, ended, stopped, died, hung, diverged or, without any attempt, idle
    cause       why it is no longer running, in words; empty where it ended as it should
    silent      seconds since its files last changed
    checkpoint  step of the last one
    saved       seconds since then
    incidents   events that are bad news, newest first
    """

    run_id: str
    path: str
    state: str
    cause: str
    attempts: int
    processes: int | None
    device: str | None
    step: int
    steps: int | None
    loss: float | None
    tokens_per_second: float | None
    silent: float | None
    checkpoint: int | None
    saved: float | None
    ledger: Ledger
    incidents: list[Line]


def read_status(run: Path) -> Status:
    """The status of a run directory. Raises DataError where its ledger is broken."""
    events = read_lines(run / "events.jsonl")
    metrics = run / "metrics.jsonl"
    starts = [event for event in events if event["event"] == "start"]
    start: Line = starts[-1] if starts else {}
    latest = _latest(metrics)
    last: Line = latest[-1] if latest else {}
    files = [path.stat().st_mtime for path in (run / "events.jsonl", metrics) if path.is_file()]
    silent = max(0.0, time.time() - max(files)) if files else None
    at_work = _at_work(run, start, silent)
    starting = at_work and _claimed(run) > start.get("time", 0.0)
    state, cause = ("starting", "") if starting else _state(events, last, at_work)
    put_aside = {event.get("step") for event in events if event["event"] == "quarantined"}
    saves = [event for event in events if event["event"] == "checkpoint" and event["step"] not in put_aside]
    return Status(
        run_id=run.name,
        path=str(run),
        state=state,
        cause=cause,
        attempts=max((event["attempt"] for event in events), default=0),
        processes=start.get("processes"),
        device=start.get("device"),
        step=max(last.get("step", 0), 0 if last.get("attempt") == start.get("attempt") else start.get("step", 0)),
        steps=start.get("steps"),
        loss=last.get("loss"),
        tokens_per_second=statistics.median(line["tokens_per_second"] for line in latest) if latest else None,
        silent=silent,
        checkpoint=saves[-1]["step"] if saves else None,
        saved=_age(saves[-1], events) if saves else None,
        ledger=goodput(events, _needed(events, metrics)),
        incidents=[event for event in reversed(events) if event["event"] not in QUIET],
    )


def _state(events: list[Line], last: Line, at_work: bool) -> tuple[str, str]:
    """What the run is doing, and why it does no more."""
    if not events:
        return "idle", ""
    said = [event for event in events if event["event"] not in ("restart", "straggler", "tracker", "time", "profile")]
    final = said[-1] if said else events[-1]
    kind, after = final["event"], f"after step {last.get('step', 0)}"
    if kind == "hang":
        return "hung", f"{final.get('why', 'nothing moved')} {after}"
    if at_work:
        return "running", ""
    if kind in ("stop", "end"):
        return {"stop": "stopped", "end": "ended"}[kind], ""
    if kind == "failed":
        return {DIVERGED: "diverged", HANG: "hung"}.get(final["code"], "died"), final["error"]
    if kind == "lost":
        return "died", f"{final.get('why', 'another process was lost')} {after}"
    return "died", f"it said nothing more {after}: killed, or its host went down"


def _at_work(run: Path, start: Line, silent: float | None) -> bool:
    """Whether a job holds the run: by its lock; by its files where it is on another host, whose locks may not show."""
    try:
        lock = os.open(run / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return start.get("boot", boot_id()) != boot_id() and silent is not None and silent < _RECENT_SECONDS


def _claimed(run: Path) -> float:
    """When the last job took hold of the run, in seconds since 1970; it says that it starts once it has loaded."""
    try:
        return (run / ".lock").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _age(event: Line, events: list[Line]) -> float:
    """Seconds since an event: by the boot's clock where it was on this boot, else by the wall clock."""
    starts = [each for each in events[: events.index(event)] if each["event"] == "start"]
    if starts and "spent" in event and starts[-1].get("boot") == boot_id():
        return max(0.0, boot_seconds() - starts[-1]["began"] - sum(event["spent"].values()))
    return max(0.0, time.time() - event["time"])


def _latest(metrics: Path) -> list[Line]:
    """The last lines of the last attempt."""
    if not metrics.is_file():
        return []
    with metrics.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LATEST_BYTES))
        whole = file.read().splitlines(keepends=True)[int(size > _LATEST_BYTES) :]
    lines = [json.loads(line) for line in whole[-_LATEST_LINES - 1 :] if line.endswith(b"\n")]
    return [line for line in lines if line["attempt"] == lines[-1]["attempt"]][-_LATEST_LINES:]


def _needed(events: list[Line], metrics: Path) -> Iterator[Line]:
    """Of metrics.jsonl, what the ledger cannot know from the events."""
    if not metrics.is_file():
        return
    with metrics.open("rb") as file:
        for attempt, step in unsettled(events):
            for line in _lines_after(file, (attempt, step)):
                if line["attempt"] != attempt:
                    break
                yield line


def _lines_after(file: BinaryIO, place: tuple[int, int]) -> Iterator[Line]:
    """The whole lines behind an (attempt, step). Both only grow from line to line."""
    low, high = 0, file.seek(0, os.SEEK_END)  # every line that begins before `low` is too early
    while low < high:
        middle = (low + high) // 2
        file.seek(middle)
        if middle:
            file.seek(middle - 1)
            file.readline()  # to where a line begins
        begin, line = file.tell(), _parsed(file.readline())
        if line is None or (line["attempt"], line["step"]) > place:
            high = middle
        else:
            low = begin + 1
    file.seek(low)
    if low:
        file.seek(low - 1)
        file.readline()
    while (line := _parsed(file.readline())) is not None:
        yield line


def _parsed(line: bytes) -> Line | None:
    """A line; None at the end and for one that is not whole."""
    return dict(json.loads(line)) if line.endswith(b"\n") else None

"""Where the wall time of a run went: every second of it belongs to one activity.

Computed from events.jsonl, where each event of a training process says how many seconds it had spent on what
(`spent`, a `Stopwatch`) when so many steps were done (`at_step`). What a killed process did after its last event, the
lines of metrics.jsonl tell; what nothing tells is `down`. Lengths of time come from clocks that nobody sets; the wall
clock counts only between processes on different boots of a host, or on different hosts.

Knows no file and no clock, and needs the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# With the names that the package ml-goodput-measurement has for them.
ACTIVITIES = {
    "step": "training steps",  # PRODUCTIVE_TRAINING
    "compile": "the first step, with its compiler",  # PROGRAM_STARTUP
    "data": "waiting for the data of a step",  # DATA_LOADING_SYNC
    "save": "held up by a checkpoint",  # UNPRODUCTIVE_CHECKPOINT_SAVE_TIME
    "evaluate": "scoring held-out text",  # CUSTOM_BADPUT_EVENTS
    "other": "traces of steps, and the end of an upload",  # OTHER
    # TPU_INITIALIZATION, TRAINING_PREP and UNPRODUCTIVE_CHECKPOINT_RESTORE_TIME
    "start": "until a process began to train",
    "lost": "not saved, so done again",  # WASTED_PROGRESS_FROM_DISRUPTION
    "hang": "nothing moved",  # OTHER
    "down": "nobody at work between attempts",  # INFRASTRUCTURE_RECOVERY_FROM_DISRUPTION
}
_WORK = ("step", "data")  # what is done again where no checkpoint has it

Line = dict[str, Any]


@dataclass(frozen=True)
class Ledger:
    """Seconds of each activity, from the beginning of the first attempt to the last sign of life."""

    seconds: dict[str, float]

    @property
    def wall(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """The share of steps that count; None before there is any time."""
        return self.seconds["step"] / self.wall if self.wall else None


def goodput(events: Iterable[Line], metrics: Iterable[Line]) -> Ledger:
    """The ledger of a run, from the lines of its events.jsonl and metrics.jsonl in the order they were written.

    Of the metrics only what `unsettled` names is needed. Attempts of versions that wrote no `spent` have steps and the
    time between.
    """
    processes = _processes(events)
    wanted = {process.attempt: process for process in processes}
    for line in metrics:
        process = wanted.get(line["attempt"])
        if process is not None and line["step"] > process.at_step:
            process.unsettled[line["step"]] = line
    seconds = dict.fromkeys(ACTIVITIES, 0.0)
    for before, after in zip([None, *processes], processes, strict=False):
        seconds["down"] += 0.0 if before is None else _join(before, after)
    if processes:
        processes[-1].settle(math.inf)
    kept = math.inf  # the step that whatever came after an interval went on from
    for interval in reversed([interval for process in processes for interval in process.intervals]):
        lost = interval.share_after(kept)
        for name, spent in interval.seconds.items():
            wasted = lost * spent if name in _WORK else 0.0
            seconds["lost"] += wasted
            seconds[name] = seconds.get(name, 0.0) + spent - wasted
        if interval.begins:
            kept = min(kept, interval.first)
    return Ledger(seconds)


def unsettled(events: Iterable[Line]) -> list[tuple[int, int]]:
    """(attempt, step) of each process: what it did after that step only the metrics of the attempt tell."""
    return [(process.attempt, process.at_step) for process in _processes(events)]


@dataclass
class _Interval:
    """Time between two events of one process, in which it went from one step to another.

    begins  whether `first` is where the run was taken up again
    """

    first: int
    last: int
    seconds: dict[str, float]
    begins: bool = False

    def share_after(self, step: float) -> float:
        """The share of its steps that came after this one. An event before each save makes it 0 or 1 in practice."""
        if self.first == self.last:
            return float(self.first > step)
        return max(0.0, self.last - max(self.first, step)) / (self.last - self.first)


@dataclass
class _Process:
    """What a process said of itself; it goes through several attempts where it rolls back.

    began       when, on the clock of the boot; None: not said
    wall_began  when, on the wall clock
    wall_end    when it spoke last, on the wall clock
    ready       seconds it took until its `start`
    spent       seconds of each activity when it spoke last
    stuck       seconds of each hang since then, and in what
    passed      seconds of a hang counted with that event, in the step that was under way
    unsettled   metrics of the steps after that
    """

    attempt: int
    at_step: int
    boot: str | None
    began: float | None
    wall_began: float
    wall_end: float
    ready: float
    spent: dict[str, float]
    intervals: list[_Interval]
    stuck: list[tuple[float, str]] = field(default_factory=list)
    passed: float = 0.0
    unsettled: dict[int, Line] = field(default_factory=dict)

    @classmethod
    def start(cls, event: Line) -> _Process:
        spent = event.get("spent", {})
        ready = sum(spent.values())
        return cls(
            attempt=event["attempt"],
            at_step=event["step"],
            boot=event.get("boot"),
            began=event.get("began"),
            wall_began=event["time"] - ready,
            wall_end=event["time"],
            ready=ready,
            spent=spent,
            intervals=[_Interval(event["step"], event["step"], dict(spent), begins=True)],
        )

    @property
    def known(self) -> float:
        """Seconds from its beginning to its last event."""
        return sum(self.spent.values())

    def add(self, event: Line) -> None:
        """An event that it, or whoever watches it, wrote. Those of others do not say what was spent."""
        if event["event"] == "hang":
            self.stuck.append((max(0.0, event["seconds"]), event.get("activity", "step")))
        rolls_back = event["event"] == "rollback"
        if "spent" in event:
            if event["attempt"] > self.attempt and not rolls_back:
                self._begin(event["attempt"], event["at_step"])
            # What is rolled back was done after the step it goes back to, whenever the event was written.
            self._advance(event, self.at_step + 1 if rolls_back else self.at_step)
        if rolls_back:
            self._begin(max(event["attempt"], self.attempt + 1), event["to_step"])

    def _begin(self, attempt: int, step: int) -> None:
        self.attempt, self.at_step, self.passed = attempt, step, 0.0
        self.intervals.append(_Interval(step, step, {}, begins=True))

    def _advance(self, event: Line, least: int) -> None:
        # Two threads may write their events in the other order than they looked at the clock.
        now = {name: max(total, self.spent.get(name, 0.0)) for name, total in event["spent"].items()}
        seconds = {name: total - self.spent.get(name, 0.0) for name, total in now.items()}
        for stuck, activity in self.stuck:
            _hang(seconds, stuck, activity)
        self.passed = sum(stuck for stuck, _ in self.stuck) if event["event"] == "hang" else 0.0
        self.stuck = []
        last = max(event["at_step"], least)
        self.intervals.append(_Interval(self.at_step, last, seconds))
        self.spent, self.at_step, self.wall_end = {**self.spent, **now}, last, event["time"]

    def settle(self, limit: float) -> float:
        """Add what it did after its last event, at most so many seconds, and say how long that took."""
        lines = self.unsettled.values()
        seconds = {
            "step": sum(line["step_seconds"] - line["data_seconds"] for line in lines),
            "data": sum(line["data_seconds"] for line in lines),
        }
        if self.at_step + 1 in self.unsettled:
            seconds["step"] = max(0.0, seconds["step"] - self.passed)
        lengths = iter([line["step_seconds"] for line in lines])
        for stuck, activity in self.stuck:
            if any(length >= stuck for length in lengths):  # that step came through, as far as its line
                _hang(seconds, stuck, activity)
            else:
                seconds["hang"] = seconds.get("hang", 0.0) + stuck
        total = sum(seconds.values())
        fitting = min(1.0, limit / total) if total else 0.0
        last = max(self.unsettled, default=self.at_step)
        self.intervals.append(_Interval(self.at_step, last, {name: fitting * each for name, each in seconds.items()}))
        return fitting * total


def _hang(seconds: dict[str, float], stuck: float, activity: str) -> None:
    """Call that much of what was measured a hang: of the activity, and what is more of what took longest."""
    for name in sorted(seconds, key=lambda name: (name != activity, -seconds[name])):
        hung = min(stuck, seconds[name])
        stuck -= hung
        seconds[name] -= hung
        seconds["hang"] = seconds.get("hang", 0.0) + hung


def _processes(events: Iterable[Line]) -> list[_Process]:
    processes: list[_Process] = []
    for event in events:
        if event["event"] == "start":
            processes.append(_Process.start(event))
        elif processes:
            processes[-1].add(event)
    return processes


def _join(before: _Process, after: _Process) -> float:
    """Settle what came before, and say how long nobody was at work until the next process began."""
    if before.began is not None and after.began is not None and before.boot == after.boot:
        gap = after.began - before.began - before.known
        # It held the run until the next one could start.
        tail = before.settle(max(0.0, gap + after.ready))
    else:
        gap = after.wall_began - before.wall_end
        tail = before.settle(math.inf)
    if gap >= tail:
        return gap - tail
    if before.boot is not None and before.boot == after.boot:  # the next one began before: that time is counted above
        first = after.intervals[0].seconds
        first["start"] = max(0.0, first.get("start", 0.0) - (tail - gap))
    return 0.0

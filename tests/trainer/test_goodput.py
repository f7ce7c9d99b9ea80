"""Promises of the goodput ledger: every second has one activity, whatever ends an attempt and whoever sets clocks."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from trainer import train
from trainer.backend.native import Native
from trainer.report.goodput import ACTIVITIES, Ledger, goodput, unsettled
from trainer.report.stopwatch import Stopwatch

MS = 0.001  # what the ledger rounds to


class Simulated:
    """A run as its processes would write it down, and what truly happened.

    truth  seconds of each activity; `down` is whatever no process was at work
    steps  [number, seconds of it, whether its line was written, whether a later attempt began before it]
    """

    def __init__(self) -> None:
        self.now = 1000.0  # seconds since boot
        self.offset = 1.7e9  # of the wall clock
        self.boot = 0
        self.truth: Counter[str] = Counter()
        self.steps: list[list[Any]] = []
        self.events: list[bytes] = []
        self.metrics: list[bytes] = []
        self.attempt = self.step = 0
        self.saved = [0]
        self.began = self.now
        self.pending: dict[str, Any] | None = None

    def start(self, ready: float) -> None:
        self.attempt, self.step = self.attempt + 1, self.saved[-1]
        self.process, self.spent = self.now, Counter[str]()
        self.pending, self.stuck, self.again = None, 0.0, True
        self.undo()
        self.spend("start", ready)
        self.say("start", step=self.step, boot=str(self.boot), began=self.process)

    def undo(self) -> None:
        for each in self.steps:
            each[3] |= each[0] > self.step

    def spend(self, activity: str, seconds: float, truly: str | None = None) -> None:
        self.now += seconds
        self.spent[activity] += seconds
        self.truth[truly or activity] += seconds

    def say(self, name: str, spent: bool = True, **facts: Any) -> None:
        line = {"time": self.now + self.offset, "attempt": self.attempt, "event": name, **facts}
        if spent:
            line |= {"at_step": self.step, "spent": {key: round(value, 3) for key, value in self.spent.items()}}
        self.events.append(json.dumps(line).encode() + b"\n")

    def flush(self) -> None:
        if self.pending is not None:
            self.metrics.append(json.dumps(self.pending).encode() + b"\n")
            self.steps[-1][2] = True
        self.pending = None

    def train(self, waited: float, computed: float, tell: bool) -> None:
        self.spend("data", waited)
        self.spend("step", computed)
        self.step += 1
        self.flush()
        if self.again:
            tell, self.again = True, False
        self.pending = {
            "time": self.now + self.offset, "attempt": self.attempt, "step": self.step,
            "step_seconds": waited + self.stuck + computed, "data_seconds": waited,
        }  # fmt: skip
        if tell:
            self.say("time")
        self.steps.append([self.step, waited + computed, False, False])
        self.stuck = 0.0

    def save(self, seconds: float) -> None:
        self.flush()
        self.say("time")
        self.spend("save", seconds)
        self.saved.append(self.step)
        self.say("checkpoint", step=self.step)

    def hang(self, seconds: float, own: bool) -> None:
        """Within a step, which may come through; told by the process itself or by another."""
        self.spend("step", seconds, truly="hang")
        self.stuck += seconds
        self.say("hang", spent=own, seconds=seconds)
        self.again |= own

    def roll_back(self, seconds: float, early: bool) -> None:
        self.flush()
        step = self.saved[-1]
        if early:
            self.say("rollback", to_step=step)
        self.spend("start", seconds)
        self.attempt, self.step = self.attempt + 1, step
        self.undo()
        if not early:
            self.say("rollback", to_step=step)

    def ledger(self, metrics: list[bytes] | None = None) -> Ledger:
        lines = self.metrics if metrics is None else metrics
        return goodput(*([json.loads(line) for line in each] for each in (self.events, lines)))


def simulate(draw: random.Random, *, cut: bool = False, jumps: bool = False, boots: bool = False) -> Simulated:
    """Some attempts, killed anywhere. `cut`: the host died, too, and the ends of both files with it."""
    run = Simulated()
    for _ in range(draw.randint(1, 5)):
        if len(run.saved) > 1 and draw.random() < 0.3:
            run.saved.pop()  # found broken: the one before it must do
        run.start(draw.uniform(0.1, 20))
        for _ in range(draw.randint(0, 12)):
            if jumps and draw.random() < 0.3:
                run.offset += draw.choice((-3600.0, 3600.0, -86400.0, 5.0))
            kind = draw.choices(("step", "save", "evaluate", "hang", "roll back"), (12, 3, 1, 1, 1))[0]
            if kind == "step":
                run.train(draw.uniform(0, 0.5), draw.uniform(0.01, 3), tell=draw.random() < 0.2)
            elif kind == "save":
                run.save(draw.uniform(0, 4))
            elif kind == "evaluate":
                run.spend("evaluate", draw.uniform(0, 9))
            elif kind == "hang":
                run.hang(draw.uniform(10, 99), own=draw.random() < 0.7)
                if draw.random() < 0.5:
                    break
                run.train(draw.uniform(0, 0.5), draw.uniform(0.01, 3), tell=draw.random() < 0.2)
            else:
                run.roll_back(draw.uniform(0, 3), early=draw.random() < 0.5)
        torn = draw.uniform(0, 3)  # of what the kill cut short
        run.spend(draw.choice(("step", "data", "save", "evaluate")), torn)
        if cut:
            for lines in (run.events, run.metrics):
                kept = b"".join(lines)
                kept = kept[: len(kept) - draw.choice((0, 1, 7, 300, 2000))]
                # The next attempt takes off what is no whole line.
                lines[:] = [line for line in kept.splitlines(keepends=True) if line.endswith(b"\n")]
        pause = draw.uniform(0, 50)
        run.now += pause
        if boots and draw.random() < 0.4:
            run.boot += 1
            run.offset += run.now - 5.0  # the clock of the boot begins again, the wall clock does not
            run.now = 5.0
    return run


seeds = st.integers(0, 2**32).map(random.Random)
many = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rounding(run: Simulated) -> float:
    """How far what is rounded may be from the truth: half a millisecond for each activity of each event."""
    return len(ACTIVITIES) * MS * (1 + len(run.events))


@many
@given(seeds)
def test_every_second_is_counted_once(draw: random.Random) -> None:
    run = simulate(draw)
    ledger, slack = run.ledger(), rounding(run)
    seconds = ledger.seconds
    event(f"lost {seconds['lost'] > 0}, hang {seconds['hang'] > 0}")
    assert set(seconds) == set(ACTIVITIES)
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) == pytest.approx(ledger.wall, abs=1e-6)
    # From the beginning of the first process to the last sign of life of the last, whatever lies between.
    events = [json.loads(line) for line in run.events]
    starts = [each for each in events if each["event"] == "start"]
    known = [sum(each["spent"].values()) for each in events if "spent" in each][-1]
    least = starts[-1]["began"] + known - starts[0]["began"]
    assert least - slack <= ledger.wall <= run.now - run.began + slack
    # Nothing twice, and what is said to be an activity was one.
    for activity in ("start", "compile", "save", "evaluate", "hang"):
        assert seconds[activity] <= run.truth[activity] + slack
    work = seconds["step"] + seconds["data"] + seconds["lost"]
    assert work <= run.truth["step"] + run.truth["data"] + slack
    # Every step whose line was written is there, and on the right side.
    assert work >= sum(each[1] for each in run.steps if each[2]) - slack
    assert seconds["lost"] >= sum(each[1] for each in run.steps if each[2] and each[3]) - slack
    assert seconds["step"] + seconds["data"] >= sum(each[1] for each in run.steps if each[2] and not each[3]) - slack


@many
@given(seeds)
def test_files_cut_anywhere_still_make_a_ledger(draw: random.Random) -> None:
    run = simulate(draw, cut=True)
    seconds, slack = run.ledger().seconds, rounding(run)
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) <= run.now - run.began + slack
    for activity in ("start", "compile", "save", "evaluate", "hang"):
        assert seconds[activity] <= run.truth[activity] + slack


@many
@given(st.integers(0, 2**32))
def test_a_wall_clock_that_jumps_changes_nothing_on_one_boot(seed: int) -> None:
    steady, jumping = simulate(random.Random(seed)), simulate(random.Random(seed))
    moved, draw = [], random.Random(seed)
    for line in jumping.events:
        moved.append(json.dumps(json.loads(line) | {"time": draw.uniform(-1e6, 3e9)}).encode())
    jumping.events = moved
    assert jumping.ledger() == steady.ledger()


@many
@given(seeds)
def test_boots_and_jumps_never_make_a_length_negative(draw: random.Random) -> None:
    run = simulate(draw, jumps=True, boots=True)
    seconds, slack = run.ledger().seconds, rounding(run)
    assert min(seconds.values()) >= 0
    for activity in ("start", "compile", "save", "evaluate", "hang"):
        assert seconds[activity] <= run.truth[activity] + slack
    assert seconds["step"] + seconds["data"] + seconds["lost"] <= run.truth["step"] + run.truth["data"] + slack


@many
@given(seeds)
def test_another_boot_is_found_on_the_wall_clock(draw: random.Random) -> None:
    run = simulate(draw, boots=True)
    events = [json.loads(line) for line in run.events]
    starts = [each for each in events if each["event"] == "start"]
    began, last = (each["time"] - sum(each["spent"].values()) for each in (starts[0], starts[-1]))
    known = [sum(each["spent"].values()) for each in events if "spent" in each][-1]
    assert run.ledger().wall >= last + known - began - rounding(run)


@many
@given(seeds)
def test_only_the_unsettled_lines_are_needed(draw: random.Random) -> None:
    run = simulate(draw, cut=True, boots=True)
    after = dict(unsettled(map(json.loads, run.events)))
    lines = [(line, json.loads(line)) for line in run.metrics]
    few = [line for line, said in lines if said["step"] > after.get(said["attempt"], 10**9)]
    assert run.ledger(few) == run.ledger()


def test_a_run_of_an_earlier_version_has_steps_and_the_time_between() -> None:
    events = [
        {"time": 100.0, "attempt": 1, "event": "start", "step": 0},
        {"time": 110.0, "attempt": 1, "event": "checkpoint", "step": 2},
        {"time": 200.0, "attempt": 2, "event": "start", "step": 2},
    ]
    metrics = [
        {"attempt": attempt, "step": step, "step_seconds": 4.0, "data_seconds": 1.0}
        for attempt, step in ((1, 1), (1, 2), (1, 3), (2, 3))
    ]
    seconds = goodput(events, metrics).seconds
    assert {name: spent for name, spent in seconds.items() if spent} == {
        "step": 9.0, "data": 3.0, "lost": 4.0, "down": 88.0,
    }  # fmt: skip


def test_a_process_that_waited_for_the_one_before_it_is_not_counted_twice() -> None:
    """A spare one, which began long before the other died: its wait was no time of the run's own."""
    first = {"time": 0.0, "attempt": 1, "event": "start", "step": 0, "boot": "b", "began": 100.0, "at_step": 0}
    spare = first | {"attempt": 2, "began": 105.0, "spent": {"start": 35.0}}
    dies = {"time": 0.0, "attempt": 1, "event": "time", "at_step": 9, "spent": {"start": 2.0, "step": 28.0}}
    seconds = goodput([first | {"spent": {"start": 2.0}}, dies, spare], []).seconds
    assert sum(seconds.values()) == pytest.approx(40.0)  # from 100 to 140
    assert seconds["start"] == pytest.approx(2.0 + 10.0)  # the spare one's from the death at 130 on
    assert seconds["lost"] == pytest.approx(28.0)


def ledger_of(run: Any) -> Ledger:
    return goodput(run.ledger, run.lines)


def test_a_kill_and_a_stop_sum_to_what_a_clock_outside_shows(lab) -> None:
    """Killed with -9, started again after a while, and stopped: to a second, and nothing counted twice."""
    began = time.monotonic()
    run = lab.start("killed", "steps=100000", "checkpoint.every=15")
    run.until_step(40)
    run.process.kill()
    run.wait()
    killed = time.monotonic()
    pause = 2.0
    time.sleep(pause)  # the length of what is to be found as `down`
    again_began = time.monotonic()
    again = lab.start("killed", "steps=100000", "checkpoint.every=15")
    again.until(lambda: any(line["attempt"] == 2 for line in again.lines), "a step of the second attempt")
    again.process.send_signal(signal.SIGTERM)
    again.until(lambda: again.events[-1]["event"] == "stop", "the stop")
    ended = time.monotonic()
    assert again.wait().code == 75
    ledger = ledger_of(again)
    assert ledger.wall == pytest.approx(ended - began, abs=1.0)
    seconds = ledger.seconds
    slowest = max(line["step_seconds"] for line in again.lines)
    # The kill took the line of one step, and another in the midst of it.
    assert seconds["down"] == pytest.approx(again_began - killed, abs=0.2 + 2 * slowest)
    before = [line for line in again.lines if line["attempt"] == 1]
    kept = next(event["step"] for event in again.events if event["attempt"] == 2)
    lost = sum(line["step_seconds"] for line in before if line["step"] > kept)
    assert 30 <= kept < before[-1]["step"]
    # Beside the lines, the step whose line the kill prevented, and what lies between two steps.
    assert lost - 0.01 <= seconds["lost"] <= lost + slowest + 0.2
    kept_lines = sum(line["step_seconds"] for line in again.lines if line["attempt"] == 2 or line["step"] <= kept)
    assert seconds["step"] + seconds["data"] == pytest.approx(kept_lines, rel=0.1, abs=0.5)
    assert seconds["save"] > 0
    assert seconds["hang"] == seconds["compile"] == 0


def test_a_stop_loses_nothing(lab) -> None:
    run = lab.start("stopped", "steps=100000")
    run.until_step(5)
    run.process.terminate()
    assert run.wait().code == 75
    last = run.lines[-1]["step"]
    lab.train("stopped", f"steps={last + 3}")
    assert ledger_of(run).seconds["lost"] == 0


def test_what_a_run_does_besides_steps_has_its_own_place(alone) -> None:
    seconds = ledger_of(alone).seconds
    assert 0 < seconds["save"] < seconds["start"]
    assert 0 < seconds["evaluate"] < seconds["start"]
    steps = sum(line["step_seconds"] - line["data_seconds"] for line in alone.lines)
    assert seconds["step"] == pytest.approx(steps, rel=0.1)
    assert seconds["down"] == seconds["lost"] == 0
    assert 0 < alone.lines[-1]["goodput"] < 1
    assert ledger_of(alone).goodput == pytest.approx(alone.lines[-1]["goodput"], rel=0.3)


def test_set_clocks_change_no_ledger_of_a_real_run(alone, pair) -> None:
    draw = random.Random(3)
    for run in (alone, pair):
        moved = [event | {"time": event["time"] + draw.choice((-7200, 0, 7200))} for event in run.ledger]
        lines = [line | {"time": 0.0} for line in run.lines]
        assert goodput(moved, lines) == ledger_of(run)


def test_slow_data_and_a_compiler_are_seen(inside, lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pause, steps = 0.1, 12
    made = train.micro_batches_from

    def slow(*arguments: Any) -> Any:
        for batch in made(*arguments):
            time.sleep(pause / 4)  # four micro-batches a step
            yield batch

    whole = Native.__init__

    def compiling(self: Native, *arguments: Any) -> None:
        whole(self, *arguments)
        self.compiles = True

    monkeypatch.setattr(train, "micro_batches_from", slow)
    monkeypatch.setattr(Native, "__init__", compiling)
    code, said = inside("slow", f"steps={steps}")
    assert code == 0, said
    run = lab.run("slow")
    seconds = ledger_of(run).seconds
    assert seconds["data"] == pytest.approx(sum(run.column("data_seconds")), abs=0.1)
    assert seconds["data"] >= pause * steps
    first = run.metrics[0]
    assert seconds["compile"] == pytest.approx(first["step_seconds"] - first["data_seconds"], abs=0.1)
    assert seconds["step"] < sum(run.column("step_seconds")) - pause * steps


def test_a_failure_is_in_the_ledger_with_its_code(inside, lab) -> None:
    wild = ("optim.peak_lr=1e38", "optim.warmup_steps=0", "optim.max_skipped=2")
    assert inside("wild", *wild)[0] == 77
    event = lab.run("wild").events[-1]
    assert (event["event"], event["code"]) == ("failed", 77)
    assert "of wild has " in event["error"]


def test_a_stopwatch_gives_each_second_to_one_activity() -> None:
    clock = Stopwatch()
    with clock.during("data"), clock.during("save"):
        time.sleep(0.02)
    seconds = clock.seconds()
    assert set(seconds) == {"start", "data", "save"}
    assert seconds["save"] >= 0.02
    assert seconds["data"] < 0.01
    alive = float(Path("/proc/uptime").read_text().split()[0]) - clock.began
    assert sum(seconds.values()) == pytest.approx(alive, abs=0.1)

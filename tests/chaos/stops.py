"""Requests to stop at random times, start included: every rank saves at one step and ends with 75, and none is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.exits import DONE, STOPPED
from tests.chaos import SEED
from tests.chaos.site import Ended, Job, Site, bits, committed, counted, starts, steps_since
from trainer import checkpoint

SIGNALS = ("SIGTERM", "SIGTERM", "SIGUSR2")  # schedulers send the first more often
RECEIVERS = ("launcher", "group", "rank")
PHASES = ("start", "load", "steps")
VARIANTS = ((), ("data.workers=1",), ())


@dataclass
class Stop:
    """One request, planned and answered.

    meant      the phase that it waited for: the launcher can answer, the run directory is claimed, or a step is done
    again      seconds until it was asked once more, if it was
    phase      what had begun: no attempt, no step, or steps
    codes      of the command and of each process that it started
    step       that was committed when all had ended
    lost       steps done beyond it
    together   whether every process had a part in that commit
    told       whether the event names the signal
    went_on    whether the attempt that followed began there
    """

    meant: str
    signal: str
    receiver: str
    again: float | None
    phase: str = ""
    codes: list[int] = dataclasses.field(default_factory=list)
    step: int = 0
    lost: int = 0
    together: bool = True
    told: bool = False
    went_on: bool = False

    @property
    def agreed(self) -> bool:
        """Whether all ended as they should: with 75, at one step that all of them saved."""
        return set(self.codes) == {STOPPED} and self.told and self.together


def scenario_stops(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """30 requests to 4 ranks in 3 runs; the short form has 2 to 2 ranks in one."""
    processes = 2 if short else 4
    variants = VARIANTS[:1] if short else VARIANTS
    draw = random.Random(SEED)
    plan = planned(2 if short else 30, draw)
    site = Site(folder)
    keys = (f"steps={30 if short else 90}", "micro_batch=3", "checkpoint.every=1000")
    expected = bits(site.finish("undisturbed", processes, *keys))
    done: list[Stop] = []
    identical = 0
    for number, variant in enumerate(variants):
        run_id, own = f"stopped-{number}", plan[number :: len(variants)]
        stopped = suffer(site, run_id, processes, (*keys, *variant), own, draw)
        done += stopped
        identical += len(stopped) * (bits(site.run(run_id)) == expected)
    return rows(len(plan), done, identical)


def planned(count: int, draw: random.Random) -> list[Stop]:
    """Every phase and every receiver equally often, in a random order; a third are asked twice in a row."""
    kinds = [(phase, receiver) for phase in PHASES for receiver in RECEIVERS]
    if count < len(kinds):
        drawn = list(zip(reversed(PHASES), draw.sample(RECEIVERS, count), strict=False))
    else:
        drawn = kinds * (count // len(kinds)) + draw.sample(kinds, count % len(kinds))
        draw.shuffle(drawn)
    again = (lambda: None, lambda: None, lambda: draw.uniform(0, 0.5))
    return [Stop(phase, draw.choice(SIGNALS), receiver, draw.choice(again)()) for phase, receiver in drawn]


def rows(wanted: int, done: list[Stop], identical: int) -> list[dict[str, Any]]:
    lost = max(stop.lost for stop in done)
    phases = Counter(stop.phase for stop in done)
    return [
        counted("stops asked for", len(done), wanted, seed=SEED, stops=[dataclasses.asdict(stop) for stop in done]),
        counted("stops that ended every process with 75 at one step", sum(stop.agreed for stop in done), len(done)),
        counted("stops after which the run went on from that step", sum(stop.went_on for stop in done), len(done)),
        counted("stops of runs that ended bit-identical to the undisturbed one", identical, len(done)),
        {"figure": "steps lost by a stop, at most", "ours": lost, "bar": 0, "met": lost == 0},
        *(
            {"figure": f"stops during {phase}", "ours": phases[phase], "bar": 1, "met": phases[phase] >= 1}
            for phase in PHASES
        ),
    ]


def suffer(
    site: Site, run_id: str, processes: int, keys: tuple[str, ...], plan: list[Stop], draw: random.Random
) -> list[Stop]:
    """Start the run again and again, ask it to stop as planned, and let it end. Gives the stops until then."""
    run = site.run(run_id)
    done: list[Stop] = []
    unanswered: list[Stop] = []  # until an attempt begins

    def answer(before: int) -> None:
        for step in starts(run)[before:]:
            while unanswered:
                stop = unanswered.pop()
                stop.went_on = step == stop.step

    for stop in plan:
        before = len(starts(run))
        job = site.start(run_id, processes, *keys)
        ended = False
        try:
            ask(job, stop, before, draw)
        except Ended:
            ended = True
        job.process.wait(timeout=120)
        answer(before)
        if ended or job.process.returncode == DONE:
            assert job.process.returncode == DONE, job.said
            return done
        judge(job, stop, before, processes)
        done.append(stop)
        unanswered.append(stop)
    before = len(starts(run))
    site.finish(run_id, processes, *keys)
    answer(before)
    return done


def ask(job: Job, stop: Stop, before: int, draw: random.Random) -> None:
    """Send what is planned. Raises Ended where the job ends before."""
    number = signal.Signals[stop.signal]
    job.until(lambda: job.answers(job.process.pid, number), "a launcher that answers")
    match stop.meant:
        case "start":
            time.sleep(draw.uniform(0, 3))
        case "load":
            job.until(job.claimed, "a claimed run directory")
            time.sleep(draw.uniform(0, 0.3))
        case "steps":
            job.until(lambda: steps_since(job.run, before), "a step")
            time.sleep(draw.uniform(0, 0.5))
    ranks = job.until(job.ranks, "ranks") if stop.receiver == "rank" else [0]
    rank = draw.choice(ranks)
    for pause in (0.0, stop.again):
        if pause is None:
            continue
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):  # of the second one, which may come when all has ended
            match stop.receiver:
                case "launcher":
                    job.process.send_signal(number)
                case "group":
                    os.killpg(job.process.pid, number)
                case "rank":
                    os.kill(rank, number)


def judge(job: Job, stop: Stop, before: int, processes: int) -> None:
    """How the job answered."""
    run = job.run
    events = run.events
    began = [number for number, event in enumerate(events) if event["event"] == "start"][before:]
    own = events[began[0] :] if began else []
    done = steps_since(run, before)
    stop.phase = "steps" if done else "load" if own else "start"
    codes = job.codes()
    stop.codes = [job.process.returncode, *codes["elastic"], *codes["ranks"]]
    stop.step = committed(run)
    if stop.step:
        found = checkpoint.find(run.folder / "checkpoints")
        assert found is not None
        stop.together = len({part.file for parts in found.parts.values() for part in parts}) == processes
    stop.lost = max(0, max(done, default=0) - stop.step)
    said = [event for event in own if event["event"] == "stop"]
    if own:
        stop.told = len(said) == 1 and said[0]["by"] == stop.signal and said[0]["step"] == stop.step
    else:
        stop.told = "stopped before anything was done" in job.said

"""SIGKILL at random times, to a rank, all ranks or a launcher, again and again: the run ends as if nothing happened."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import SEED
from tests.chaos.site import Ended, Job, Site, bits, committed, counted, starts, steps_since
from tests.trainer.conftest import Recorded

PROCESSES = 2
EVERY = 2  # steps between checkpoints
PHASES = ("start", "load", "step", "save")
VICTIMS = ("rank", "ranks", "launcher", "elastic")
# What a run has besides: data workers and the helpers of W&B are processes that could be left behind, too.
VARIANTS = ((), ("data.workers=1",), (), ("tracker=offline",), ())


@dataclass
class Kill:
    """One kill, planned and done.

    meant, hit  the phase that it waited for, and the one that it met
    gone, left  seconds until no process was left, and how many were that had to be killed
    commit      newest committed step then
    lost        steps done beyond it
    went_on     whether the attempt that followed began there
    """

    meant: str
    victim: str
    hit: str = ""
    gone: float = 0.0
    left: int = 0
    commit: int = 0
    lost: int = 0
    went_on: bool = False


def scenario_kills(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """50 kills in 5 runs; the short form has 3 in one."""
    variants = VARIANTS[:1] if short else VARIANTS
    draw = random.Random(SEED)
    plan = planned(3 if short else 50, draw)
    site = Site(folder)
    keys = (f"steps={16 if short else 60}", f"checkpoint.every={EVERY}")
    expected = bits(site.finish("undisturbed", PROCESSES, *keys))
    done: list[Kill] = []
    identical = 0
    for number, variant in enumerate(variants):
        run_id, own = f"killed-{number}", plan[number :: len(variants)]
        suffered = suffer(site, run_id, (*keys, *variant), own, draw)
        done += suffered
        identical += len(suffered) * (bits(site.run(run_id)) == expected)
    return rows(len(plan), done, identical)


def planned(count: int, draw: random.Random) -> list[Kill]:
    """Every phase and every victim equally often, in a random order."""
    kinds = [(phase, victim) for phase in PHASES for victim in VICTIMS]
    if count < len(kinds):
        return [Kill(*kind) for kind in zip(PHASES[-count:], draw.sample(VICTIMS, count), strict=True)]
    drawn = kinds * (count // len(kinds)) + draw.sample(kinds, count % len(kinds))
    draw.shuffle(drawn)
    return [Kill(*kind) for kind in drawn]


def rows(wanted: int, done: list[Kill], identical: int) -> list[dict[str, Any]]:
    hits, victims = (Counter(getattr(kill, name) for kill in done) for name in ("hit", "victim"))
    gone, lost = (max(getattr(kill, name) for kill in done) for name in ("gone", "lost"))
    return [
        counted("SIGKILLs", len(done), wanted, seed=SEED, victims=victims, kills=[dataclasses.asdict(k) for k in done]),
        counted("SIGKILLs of runs that ended bit-identical to the undisturbed one", identical, len(done)),
        counted("SIGKILLs after which the run went on from the newest commit", sum(k.went_on for k in done), len(done)),
        {"figure": "steps done again after a SIGKILL, at most", "ours": lost, "bar": None, "met": None},
        counted("processes left by killed jobs", sum(kill.left for kill in done), 0),
        {"figure": "seconds until a killed job had no process left", "ours": gone, "bar": 10, "met": gone <= 10},
        *(
            {"figure": f"SIGKILLs during {phase}", "ours": hits[phase], "bar": 1, "met": hits[phase] >= 1}
            for phase in PHASES
        ),
    ]


def suffer(site: Site, run_id: str, keys: tuple[str, ...], plan: list[Kill], draw: random.Random) -> list[Kill]:
    """Start the run again and again, kill it as planned, and let it end. Gives the kills that it met until then."""
    run = site.run(run_id)
    done: list[Kill] = []
    unanswered: list[Kill] = []  # until an attempt begins

    def answer(before: int, newest: int) -> None:
        """The attempts that began since there were so many, when that was the newest commit."""
        began = starts(run)[before:]
        assert len(began) <= 1, began
        while began and unanswered:
            kill = unanswered.pop()
            kill.went_on = began[0] == kill.commit == newest

    for kill in plan:
        before, newest = len(starts(run)), committed(run)
        job = site.start(run_id, PROCESSES, *keys)
        try:
            strike(job, kill, before, draw)
        except Ended:
            assert job.process.wait() == 0, job.said
        answer(before, newest)
        if job.process.returncode == 0:
            return done
        done.append(kill)
        unanswered.append(kill)
    before, newest = len(starts(run)), committed(run)
    site.finish(run_id, PROCESSES, *keys)
    answer(before, newest)
    return done


def strike(job: Job, kill: Kill, before: int, draw: random.Random) -> None:
    """Kill what is to be killed when it is to be. Raises Ended where the job ends before."""
    abandoned = unfinished(job.run)
    match kill.meant:
        case "start":
            time.sleep(draw.uniform(0.1, 3.5))
        case "load":
            job.until(job.claimed, "a claimed run directory")
            time.sleep(draw.uniform(0, 0.3))
        case "step":
            steps = draw.randint(1, 3)
            job.until(lambda: len(steps_since(job.run, before)) >= steps, "steps")
            time.sleep(draw.uniform(0, 0.1))
        case "save":
            for _ in range(draw.randint(1, 2)):
                abandoned_by_now = unfinished(job.run)
                job.until(lambda: unfinished(job.run) - abandoned_by_now, "a save")  # noqa: B023
            time.sleep(draw.uniform(0, 0.01))
    victims = job.until(lambda: chosen(job, kill.victim), f"a {kill.victim} to kill")
    if kill.victim == "rank":
        victims = [draw.choice(victims)]
    had_claimed = job.claimed()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    kill.gone, kill.left = job.gone()
    if job.process.returncode == 0:
        raise Ended("the kill")
    if len(starts(job.run)) == before:
        kill.hit = "load" if had_claimed else "start"
    elif not (done := steps_since(job.run, before)):
        kill.hit = "load"
    else:
        kill.hit = "save" if unfinished(job.run) - abandoned else "step"
        kill.lost = max(0, max(done) - committed(job.run))
    kill.commit = committed(job.run)


def chosen(job: Job, victim: str) -> list[int]:
    if victim == "launcher":
        return [job.process.pid]
    return job.elastic() if victim == "elastic" else job.ranks()


def unfinished(run: Recorded) -> set[Path]:
    """Tries at saving a step that is not committed."""
    tries = (path for path in (run.folder / "checkpoints").glob("step-*/*") if path.is_dir())
    return {path for path in tries if not (path.parent / "COMMIT").exists()}

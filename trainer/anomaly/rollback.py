"""Going back to a checkpoint where more steps would not mend a run, in the same processes.

After too many bad steps their data is passed over, and that of some steps before, as PaLM was trained (arXiv
2204.02311, section 5.1: from about 100 steps before a spike, without the 200 to 500 batches around it; other parameters
took no harm from the same batches). Steps before these are taken again as they were. After silent corruption no data is
passed over: the checkpoint is one whose bits were still found right.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from conf import schema
from conf.exits import DivergedError
from conf.json_lines import append_line
from data_pipeline.skips import Skip, Skips
from trainer import checkpoint
from trainer.anomaly.incident import write_incident
from trainer.anomaly.trouble import Corrupt, Trouble, Unstable
from trainer.build import Parts
from trainer.checkpoint import Committed
from trainer.liveness.reading import Reading
from trainer.report import Report, Stopwatch
from trainer.run import Run, cursor_of
from trainer.run_directory import SKIP_LIST

_SHOWN = 3  # documents that a message names


def roll_back(job: schema.Job, run: Run, parts: Parts, report: Report, trouble: Trouble, clock: Stopwatch) -> None:
    """Make the run what it was at an earlier checkpoint, and pass over the data that led to the trouble.

    Every process calls it. Raises DivergedError where there is no checkpoint to go back to, or it did not help before.
    """
    report.forget()
    directory, asks = parts.directory, parts.backend.processes.rank == 0
    step, passed_from, why = _target(job, run, parts, trouble) if asks else (0, 0, "")
    step, passed_from = map(int, parts.backend.agree([step, passed_from]))  # every process waits here for the first
    if isinstance(trouble, Corrupt):
        hosts = sorted(set(trouble.hosts.values()))
        # Told before anything is withdrawn, so that the next start completes what a death cuts short.
        sound = _verified(run, _committed(parts)) if asks and trouble.state else 0
        report.event("corruption", step=run.step, what=str(trouble), hosts=hosts, sound=sound or None)
    if step == 0:
        last_words = _end(job, run, parts, trouble, why) if asks else str(trouble)
        parts.backend.barrier()  # a launcher ends the others once one process has left
        raise DivergedError(last_words)
    passed_over = f"the data of steps {passed_from} to {trouble.last}" if isinstance(trouble, Unstable) else "no data"
    file = ""
    if asks:
        outcome = f"back to the checkpoint of step {step}, passing over {passed_over}"
        file, _ = write_incident(job, run, parts, trouble, outcome, [])
        # Before data is passed over, so that the run can be started again whatever ends it in between.
        checkpoint.withdraw(directory.places, after=step)
    places = [Reading(place, clock) for place in directory.places]
    back = checkpoint.newest_sound(places, parts.backend, functools.partial(directory.put_aside, run.attempt))
    assert back is not None
    entry = _entry(parts, trouble, passed_from, back) if isinstance(trouble, Unstable) else None
    if asks and entry is not None:
        append_line(directory.path / SKIP_LIST, {"format": 1, "time": time.time(), **entry})
    run.attempt += 1
    facts = {
        "from_step": run.step,
        "to_step": back.step,
        "passed_over": passed_over,
        "why": str(trouble),
        "incident": file,
    }
    report.event("rollback", **facts, samples=[] if entry is None else entry["samples"])
    if entry is not None:
        parts.stream.skips = Skips((*parts.stream.skips.entries, Skip.from_json(entry)))
        run.order = parts.stream.describe()
    run.optimizer.zero_grad(set_to_none=True)  # of a step that was not finished
    run.load(back)


def _target(job: schema.Job, run: Run, parts: Parts, trouble: Trouble) -> tuple[int, int, str]:
    """The step to go back to, and from which one on data is passed over; 0, 0 and the reason where there is none."""
    committed, ledger = _committed(parts), parts.directory.events()
    if isinstance(trouble, Unstable):
        # A run that came through, and meets the next trouble further on, may go back as often again.
        near = trouble.first - job.spike.window
        tried = sum(
            event["event"] == "rollback" and bool(event["samples"]) and event["from_step"] >= near for event in ledger
        )
        before = [step for step in committed if step < trouble.first]
        if tried >= job.spike.rollbacks:
            return 0, 0, f"the run went back {tried} times here already (spike.rollbacks={job.spike.rollbacks})"
        if not before:
            return 0, 0, "no checkpoint stands before them to go back to"
        reach = trouble.first - 1 - job.spike.margin * 2**tried  # further each time
        step = max((step for step in before if step <= reach), default=before[0])
        return step, max(step, reach) + 1, ""
    assert isinstance(trouble, Corrupt)
    if not trouble.state:
        return 0, 0, "what computes differently from time to time would do so again"
    blamed = {host for event in ledger if event["event"] == "corruption" for host in event["hosts"]}
    if again := sorted(blamed & set(trouble.hosts.values())):
        return 0, 0, f"it happened on {', '.join(again)} before"
    verified = _verified(run, committed)
    return (verified, 0, "") if verified else (0, 0, "no checkpoint is older than the last time that bits were right")


def _committed(parts: Parts) -> list[int]:
    """Committed steps, wherever they lie."""
    return sorted({step for place in parts.directory.places for step in checkpoint.committed_steps(place)})


def _verified(run: Run, committed: Sequence[int]) -> int:
    """The latest checkpoint that was saved no later than bits were last found right; 0: none."""
    return max((step for step in committed if step <= run.digested), default=0)


def _entry(parts: Parts, trouble: Unstable, passed_from: int, back: Committed) -> dict[str, Any]:
    """What is passed over from a checkpoint on, as a line of the skip list."""
    first, last = (parts.stream.step_samples(parts.ramp, step - 1) for step in (passed_from, trouble.last))
    return {
        "from_sample": cursor_of(back).samples_done,
        "steps": [passed_from, trouble.last],
        "samples": [first[0], last[-1] + 1],
        "reason": f"spike at step {trouble.first}",
    }


def _end(job: schema.Job, run: Run, parts: Parts, trouble: Trouble, why: str) -> str:
    """What the run ends with, after people were left all that is known."""
    run_id, steps = parts.directory.run_id, _committed(parts)
    withdrawn: list[int] = []
    if isinstance(trouble, Corrupt) and trouble.state and (verified := _verified(run, steps)):
        checkpoint.withdraw(parts.directory.places, after=verified)
        withdrawn = [step for step in steps if step > verified]
        steps = _committed(parts)
    latest = f"the checkpoint of step {steps[-1]}" if steps else "the start"
    if isinstance(trouble, Unstable):
        first = max(trouble.first - job.spike.margin, steps[-1] + 1 if steps else 1)
        remedy = [
            f"`gemcutter explain {run_id} --step {trouble.first}` lists the documents of a step",
            f"pass over their data with `gemcutter skip {run_id} --steps {first}-{trouble.last}` and give the same "
            f"command again, to go on from {latest}",
            f"or begin a new run with init_from={run_id} and a lower optim.peak_lr",
        ]
    else:
        assert isinstance(trouble, Corrupt)
        hosts = ", ".join(sorted(set(trouble.hosts.values())))
        remedy = [
            f"test memory and processors of {hosts}, or leave them out",
            f"give the same command again, to go on from {latest}"
            + (f" (those of steps {withdrawn} were saved later, and withdrawn)" if withdrawn else "")
            + ("" if steps and steps[-1] <= run.digested else ", whose bits nobody has held against others"),
        ]
    file, documents = write_incident(job, run, parts, trouble, f"the run ends: {why}", remedy)
    named = f" Documents in them: {', '.join(dict.fromkeys(documents[:_SHOWN]))}, ..." if documents else ""
    return f"{trouble}: nothing of it was saved, and {why}. {file} says more.{named} {'; '.join(remedy)}"

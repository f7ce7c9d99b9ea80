"""What a save beside the steps costs: the steps wait while it copies, and share the cores while it writes.

A model of 50 M parameters, 4,096 tokens a step, saved every 20 steps. Steps and saves of the trainer itself are timed
in one process, saves of both kinds in turns. The first copy takes the memory that the later ones use again, so it is
told apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from conf.compose import compose
from trainer import checkpoint
from trainer.backend import choose
from trainer.build import build
from trainer.liveness.stop import StopSignal
from trainer.report import Report, Stopwatch
from trainer.saver import Saver
from trainer.step import make_train_step
from trainer.train import micro_batches_from

EVERY = 20  # steps between saves
MODEL = (
    "model.num_layers=8", "model.d_model=640", "model.d_ff=2560", "model.num_heads=10", "model.num_kv_heads=10",
    "model.head_dim=64", "model.window=1024",
)  # fmt: skip
WORK = (
    "backend=cpu", "tracker=none", "data.held_out=null", "data.sequence_length=1024", "data.packing=concat",
    "tokens_per_step=4096", "micro_batch=4", "steps=100000", "checkpoint.keep_last=1",
)  # fmt: skip


def scenario_saving(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """Rows of the figures of a save beside the steps. The short form is of a small model, and has no bars."""
    command = [sys.executable, "-m", "tests.chaos.saving", str(folder), "short" if short else "long"]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    told = json.loads(done.stdout.splitlines()[-1])
    stall = told["stall_seconds"] / told["blocking_seconds"]
    # The first step beside a save with the first ones beside the others, and so on: single steps are noisy.
    each = [[seconds - told["step_seconds"] for seconds in steps] for steps in told["steps_beside"]]
    extra = sum(map(statistics.median, zip(*each, strict=False)))
    total = (told["stall_seconds"] + extra) / (EVERY * told["step_seconds"])
    return [
        {
            "figure": "steps wait for a save beside them, part of a blocking save",
            "ours": stall,
            "bar": None if short else 0.10,
            "met": None if short else stall <= 0.10,
            **told,
        },
        {
            "figure": f"a save every {EVERY} steps beside them, part of the time of the steps",
            "ours": total,
            "bar": None if short else 0.03,
            "met": None if short else total <= 0.03,
        },
    ]


def measure(folder: Path, short: bool) -> dict[str, Any]:
    """Seconds of a step alone and beside a save, of a blocking save, and that steps wait for one beside them."""
    from tests.trainer.conftest import documents, make_corpus  # which needs pytest

    corpus = make_corpus(folder / "corpus", documents(400), 512)
    os.chdir(folder)
    job = compose("train", [*WORK, *([] if short else MODEL), *corpus.overrides, "run_id=saving"])
    backend = choose(job)
    clock = Stopwatch()
    run, parts = build(job, backend, clock)
    train_step = make_train_step(run.model, run.optimizer, job.optim.clip_norm, job.optim.z_loss, backend)
    store, alone, beside, stalls, blocking, reading = parts.directory.checkpoints, [], [], [], [], []
    with (
        closing(micro_batches_from(job, run, parts)) as stream,
        Report(job, run, parts, clock, StopSignal()) as report,
        Saver(job, run, parts, report, clock) as saver,
    ):
        batches = backend.feed(stream)

        def step() -> float:
            began = time.perf_counter()
            batch = next(batches)
            metrics = train_step([batch])
            run.step, run.cursor = run.step + 1, batch.cursor
            sums = backend.agree([0.0, *saver.flags()])
            with report.waiting():
                pass
            report.push(run.step, metrics, learning_rate=0.0, samples_done=batch.cursor.samples_done)
            saver.agreed(sums[1:])
            return time.perf_counter() - began

        for _ in range(2):
            step()
        for _ in range(2 if short else 6):
            alone += [step() for _ in range(3)]
            attempt, marks = checkpoint.new_attempt(1, backend), [time.perf_counter()]
            index = checkpoint.write_payload(store, run.step, attempt, 0, checkpoint.holding(run.tensors(), first=True))
            checkpoint.commit(store, run.step, attempt, 1, run.state())
            marks.append(time.perf_counter())
            checkpoint.verify_written(store, run.step, attempt, index)
            marks.append(time.perf_counter())
            blocking.append(marks[1] - marks[0])
            reading.append(marks[2] - marks[1])
            alone.append(step())
            began = time.perf_counter()
            saver.save()
            stalls.append(time.perf_counter() - began)
            beside.append([])
            while any(place.work.busy for place in saver.places):
                beside[-1].append(step())
    numbers = sum(tensor.numel() for tensor in run.model.parameters())
    backend.close()
    return {
        "parameters": numbers,
        "step_seconds": statistics.median(alone),
        "steps_alone": alone,
        "steps_beside": beside,
        "saves": len(stalls),
        "stall_seconds": statistics.median(stalls[1:]),
        "first_stall_seconds": stalls[0],
        "blocking_seconds": statistics.median(blocking),
        "reading_back_seconds": statistics.median(reading),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), short=sys.argv[2] == "short")))

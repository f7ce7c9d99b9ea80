"""The training loop: everything that changes a run is on this page."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing

from conf import schema
from conf.exits import DONE, ERRORS, STOPPED
from data_pipeline.batch import Batch
from data_pipeline.feeder import settle
from trainer.anomaly.integrity import Integrity
from trainer.anomaly.rollback import roll_back
from trainer.anomaly.spikes import limits_on_device
from trainer.anomaly.trouble import Trouble
from trainer.backend import Backend, choose
from trainer.build import Parts, build
from trainer.held_out import held_out_loss
from trainer.liveness import notice
from trainer.liveness.stop import StopSignal
from trainer.liveness.watch import Watch
from trainer.optim.optimizer import lr_at, set_lr
from trainer.profiler import Profiler
from trainer.report import Report, Stopwatch
from trainer.run import Run
from trainer.saver import Saver
from trainer.step import make_train_step


def train(job: schema.Job, stop: StopSignal) -> int:
    """Train until `job.steps`, resuming where the run's last checkpoint stands; returns the exit code.

    Raises ConfigError, DataError, DivergedError or LostError.
    """
    clock = Stopwatch()
    notice.watch(stop)
    backend = choose(job)
    try:
        with Watch(job, backend, clock) as watch:
            with watch.blaming():
                by = stop.agreed(backend.agree(stop.votes()))  # to build and load a large model takes minutes
                built = None if by else build(job, backend, clock)
            code = not_begun(by, backend) if built is None else fit(job, *built, clock, stop, watch)
            backend.barrier()  # a launcher ends the others once one has left, and the first may still be uploading
    except ERRORS:
        if backend.processes.size == 1:  # else the others would lose their peer, and fail, before our exit says why
            backend.close()
        raise
    backend.close()
    return code


def not_begun(by: str | None, backend: Backend) -> int:
    """The exit code of a run that was asked to stop before it could do anything."""
    if backend.processes.rank == 0:
        print(f"gemcutter train: stopped before anything was done, as asked by {by}", file=sys.stderr)
    return STOPPED


def fit(job: schema.Job, run: Run, parts: Parts, clock: Stopwatch, stop: StopSignal, watch: Watch) -> int:
    """Train until `job.steps` or until asked to stop; says which, as an exit code. Goes back where numbers went wrong.

    Raises DivergedError, DataError or LostError.
    """
    settle()
    with watch.blaming(), Report(job, run, parts, clock, stop) as report, watch.over(run, parts):
        for key, was, now in parts.directory.changes:
            report.event("changed", key=key, was=was, now=now)
        while True:
            try:
                return take_steps(job, run, parts, clock, stop, report)
            except Trouble as trouble:
                clock.begin("start")
                roll_back(job, run, parts, report, trouble, clock)
                watch.begin(run)


def take_steps(job: schema.Job, run: Run, parts: Parts, clock: Stopwatch, stop: StopSignal, report: Report) -> int:
    """What `fit` does until numbers go wrong. Raises Trouble, DataError."""
    backend, integrity = parts.backend, Integrity(job, run)
    train_step = backend.compile(
        make_train_step(run.model, run.optimizer, job.optim.clip_norm, job.optim.z_loss, backend, integrity.checked)
    )
    follow = None if run.average is None else backend.compile(run.average.update)
    with (
        closing(micro_batches_from(job, run, parts)) as stream,
        Profiler(job, run, parts, report, clock) as profiler,
        Saver(job, run, parts, report, clock) as saver,
    ):
        batches = backend.feed(stream)
        clock.begin("compile" if backend.compiles and "compile" not in clock.seconds() else "step")  # once a process
        saver.begin()
        asked_by = stop.agreed(backend.agree(stop.votes()))  # while the run was built
        while run.step < job.steps and not asked_by:
            profiler.before(run.step + 1)
            shares = parts.ramp.rows(run.step) // (job.micro_batch * backend.feeders * backend.world.size)
            with clock.during("data"), report.waiting():
                micro_batches = [next(batches) for _ in range(shares)]
            learning_rate = lr_at(job.optim, run.step, job.steps)
            set_lr(run.optimizer, learning_rate)
            samples_done = micro_batches[-1].cursor.samples_done
            metrics = train_step(micro_batches, limits_on_device(job, run, samples_done, parts.stream, backend.device))
            clock.begin("step")
            run.step += 1
            if run.average is not None and follow is not None:
                follow(run.model, metrics["skipped"], run.average.share(run.step).to(backend.device))
            # A batch carries the cursor that follows it, so a checkpoint never counts what was merely prefetched.
            run.cursor = micro_batches[-1].cursor
            # Agreed once a step: the save and the exit must be the same everywhere. Waits for the device.
            sums = backend.agree([*stop.votes(), *saver.flags()])
            asked_by = stop.agreed(sums[: stop.VOTES])
            report.push(run.step, metrics, learning_rate=learning_rate, samples_done=samples_done)
            integrity.after_update(report)

            saver.agreed(sums[stop.VOTES :])
            last = asked_by is not None or run.step == job.steps
            if parts.held_out and (due(run.step, job.evaluate.every) or run.step == job.steps):
                with clock.during("evaluate"):
                    report.add(held_out_loss=held_out_loss(job, run.model, parts.held_out, backend))
            if last or due(run.step, job.checkpoint.every) or saver.owes():
                report.flush()  # what ends a run that diverged raises here, before it is saved
                with clock.during("save"):
                    saver.finish() if last else saver.save()
        if run.step < job.steps:
            report.event("stop", step=run.step, by=asked_by)
            return STOPPED
        with clock.during("save"):
            saver.catch_up()  # there may have been no step to do
        report.event("end", step=run.step)
    return DONE


def micro_batches_from(job: schema.Job, run: Run, parts: Parts) -> Generator[Batch]:
    """This process's micro-batches from where the run stands, for ever."""
    world = parts.backend.world
    return parts.stream.batches(
        rows_per_step=parts.ramp,
        micro_batch=job.micro_batch * parts.backend.feeders,
        rank=world.rank,
        world=world.size,
        start=run.cursor,
        step=run.step,
    )


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0

"""The training loop: everything that changes a run is on this page."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from conf import schema
from conf.exits import DONE, ERRORS, STOPPED
from data_pipeline.batch import Batch
from data_pipeline.feeder import settle
from trainer.backend import choose
from trainer.build import Parts, build
from trainer.held_out import held_out_loss
from trainer.optim import lr_at, set_lr
from trainer.profiler import Profiler
from trainer.report import Report, Stopwatch
from trainer.run import Run
from trainer.saver import Saver
from trainer.step import make_train_step
from trainer.stop import StopSignal
from trainer.watch import Watch


def train(job: schema.Job) -> int:
    """Train until `job.steps`, resuming where the run's last checkpoint stands; returns the exit code.

    Raises ConfigError, DataError, DivergedError or LostError.
    """
    clock = Stopwatch()
    backend = choose(job)
    try:
        with Watch(job, backend, clock) as watch:
            with watch.blaming():
                run, parts = build(job, backend)
            code = fit(job, run, parts, clock, watch)
            backend.barrier()  # a launcher ends the others once one has left, and the first may still be uploading
    except ERRORS:
        if backend.processes.size == 1:  # else the others would lose their peer, and fail, before our exit says why
            backend.close()
        raise
    backend.close()
    return code


def fit(job: schema.Job, run: Run, parts: Parts, clock: Stopwatch, watch: Watch) -> int:
    """Train until `job.steps` or until asked to stop; says which, as an exit code.

    Raises DivergedError, DataError or LostError.
    """
    backend = parts.backend
    settle()
    train_step = backend.compile(
        make_train_step(run.model, run.optimizer, job.optim.clip_norm, job.optim.z_loss, backend)
    )
    follow = None if run.average is None else backend.compile(run.average.update)
    with (
        StopSignal() as stop,  # outermost: the end of a report may take long, and must not be cut short
        closing(micro_batches_from(job, run, parts)) as stream,
        Report(job, run, parts, clock) as report,
        Profiler(job, run, parts, report) as profiler,
        watch.over(run, parts),
    ):
        for key, was, now in parts.directory.changes:
            report.event("changed", key=key, was=was, now=now)
        saver = Saver(job, parts, report)
        batches = backend.feed(stream)
        clock.begin("step")
        while run.step < job.steps:
            profiler.before(run.step + 1)
            shares = parts.ramp.rows(run.step) // (job.micro_batch * backend.feeders * backend.world.size)
            with clock.during("data"), report.waiting():
                micro_batches = [next(batches) for _ in range(shares)]
            learning_rate = lr_at(job.optim, run.step, job.steps)
            set_lr(run.optimizer, learning_rate)
            metrics = train_step(micro_batches)
            run.step += 1
            if run.average is not None and follow is not None:
                follow(run.model, metrics["skipped"], run.average.share(run.step).to(backend.device))
            # A batch carries the cursor that follows it, so a checkpoint never counts what was merely prefetched.
            run.cursor = micro_batches[-1].cursor
            # Agreed once a step: the save and the exit must be the same everywhere. Waits for the device.
            (stopping,) = backend.agree([stop.asked_by is not None])
            report.push(run.step, metrics, learning_rate=learning_rate, samples_done=run.cursor.samples_done)

            last = stopping > 0 or run.step == job.steps
            if parts.held_out and (due(run.step, job.evaluate.every) or run.step == job.steps):
                with clock.during("evaluate"):
                    report.add(held_out_loss=held_out_loss(job, run.model, parts.held_out, backend))
            if last or due(run.step, job.checkpoint.every) or saver.owes(run.step):
                report.flush()  # what ends a run that diverged raises here, before it is saved
                with clock.during("save"):
                    saver.insist(run) if last else saver.save(run)
            if stopping:
                report.event("stop", step=run.step)
                return STOPPED
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

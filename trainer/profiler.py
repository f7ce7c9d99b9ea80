"""Traces of the steps that `profile.steps` names: what every process ran and for how long. Knows no model."""

from __future__ import annotations

from torch.profiler import profile, record_function

from conf import schema
from conf.json_lines import writing
from trainer.build import Parts
from trainer.report import Report, Stopwatch
from trainer.run import Run


class Profiler:
    """Records from before the first of the steps until after the last, or as much of that as this attempt runs.

    Each process writes a trace of its own to `profiles/`, in Chrome's format, which Perfetto and W&B show. An attempt
    that fails while it records, or goes back to a checkpoint, writes none. Recording changes how long a step takes, and
    nothing else.
    """

    def __init__(self, job: schema.Job, run: Run, parts: Parts, report: Report, clock: Stopwatch) -> None:
        self._steps = range(job.profile.steps[0], job.profile.steps[1] + 1) if job.profile.steps else range(0)
        self._folder, self._attempt = parts.directory.path / "profiles", run.attempt
        self._backend, self._report, self._clock = parts.backend, report, clock
        self._recording: tuple[int, profile] | None = None  # since which step
        self._step: tuple[int, record_function] | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        if self._recording is not None:
            with self._clock.during("other"):
                self._write() if error[0] is None else self._recording[1].stop()

    def before(self, step: int) -> None:
        """Start recording where this step is the first to be recorded, and write where it no longer is."""
        if self._recording is not None and step not in self._steps:
            with self._clock.during("other"):
                self._write()
        if step not in self._steps:
            return
        if self._recording is None:
            with self._clock.during("other"):
                self._recording = step, profile()  # of the host and of the accelerator that torch finds
                self._recording[1].start()
        self._end_step()
        self._step = step, record_function(f"step {step}")
        self._step[1].__enter__()

    def _end_step(self) -> None:
        if self._step is not None:
            self._step[1].__exit__(None, None, None)

    def _write(self) -> None:
        assert self._recording is not None
        assert self._step is not None
        self._end_step()
        (first, recording), (last, _) = self._recording, self._step
        recording.stop()  # waits for the device
        self._recording = self._step = None
        name = f"steps-{first}-{last}.attempt-{self._attempt}"
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)
        file = self._folder / f"{name}.rank-{self._backend.processes.rank}.pt.trace.json"
        recording.export_chrome_trace(str(file))
        self._backend.barrier()  # every process has written
        files = sorted(self._folder.glob(f"{name}.rank-*.pt.trace.json"))
        self._report.event("profile", first=first, last=last, files=[str(file) for file in files])
        self._report.keep("profile", name, files)

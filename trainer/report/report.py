"""Metrics of a step, and where they go.

A step stays open until the next one comes or the run is saved, so that what is measured after it, such as a held-out
loss, goes into its line.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from conf import schema
from conf.exits import ERRORS
from conf.json_lines import append_line
from trainer.anomaly.spikes import stage_of, take, too_many, wrong
from trainer.anomaly.trouble import Unstable
from trainer.build import Parts
from trainer.liveness.stop import StopSignal
from trainer.model.config import flops_per_token
from trainer.report.stopwatch import Stopwatch, boot_id, boot_seconds
from trainer.report.terminal import Terminal
from trainer.run import Run
from trainer.tracker import Tracker, open_tracker

# Between events that say where the time went, whichever is more: seconds, and the share of the process's age, so that
# the ledger of a long run stays short. The lines of metrics.jsonl tell what followed the last one.
_TOLD_SECONDS, _TOLD_SHARE = 60.0, 0.01


class Report:
    """The metrics of a run. Every process has one, since every process must stop at a loss that is not a number; only
    the first writes."""

    def __init__(self, job: schema.Job, run: Run, parts: Parts, clock: Stopwatch, stop: StopSignal) -> None:
        self._job, self._run, self._clock, self._stop = job, run, clock, stop
        self._directory, self._stream, self._backend = parts.directory, parts.stream, parts.backend
        self._pending: tuple[int, dict[str, Tensor], dict[str, float], dict[str, float]] | None = None
        self._flops = flops_per_token(run.model.config, job.data.sequence_length)
        self._started = self._data_seconds = 0.0
        self._told = -math.inf  # when `time` was last written
        self._storage: Counter[str] = Counter()  # what reading suffered in this attempt, on all processes
        self._terminal: Terminal | None = None
        self._tracker: Tracker | None = None

    def __enter__(self) -> Report:
        if self._backend.processes.rank == 0:
            self._tracker = open_tracker(self._job, self._directory, self._stop)
            self._terminal = Terminal(self._directory.run_id, self._run.step, self._job.steps)
            self._terminal.start()
            self.event(
                "start",
                step=self._run.step,
                steps=self._job.steps,
                processes=self._backend.processes.size,
                device=self._backend.device.type,
                directory=str(self._directory.path),
                boot=boot_id(),
                began=self._clock.began,
            )
            for facts in self._directory.quarantined:  # recorded when it happened
                self._terminal.say("quarantined", facts)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._clock.begin("other")
        if self._terminal is None or self._tracker is None:
            return
        with _giving_way_to(error):
            self._terminal.stop()
        if error is not None:
            code = error.code if isinstance(error, ERRORS) else None
            with _giving_way_to(error):
                self._record("failed", error=str(error) or type(error).__name__, code=code)
        with _giving_way_to(error):
            self._tracker.close(failed=error is not None)
        with _giving_way_to(error):
            self._tell_news()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a step's data, which is also where its time starts."""
        self._started = time.perf_counter()
        yield
        self._data_seconds = time.perf_counter() - self._started

    def push(self, step: int, metrics: dict[str, Tensor], **known: float) -> None:
        """Take the metrics of a step, still on the device, and write the step before.

        Raises Unstable where the step before was one too many that was skipped.
        """
        self._flush()
        age = boot_seconds() - self._clock.began
        if time.monotonic() > self._told + max(_TOLD_SECONDS, _TOLD_SHARE * age):
            self._tell()
        known |= {"step_seconds": time.perf_counter() - self._started, "data_seconds": self._data_seconds}
        self._pending = step, metrics, known, {}

    def add(self, **extras: float) -> None:
        """Put named values beside the metrics of the step that is open."""
        assert self._pending is not None
        self._pending[3].update(extras)

    def flush(self) -> None:
        """Write what is pending, so that the run's counts are those of the last step. Raises as `push` does.

        And where the time went up to here: what follows is done again where no checkpoint has it.
        """
        self._flush()
        self._tell()

    def _flush(self) -> None:
        if self._pending is None:
            return
        (step, metrics, known, extras), self._pending = self._pending, None
        values = {name: value.item() for name, value in metrics.items() if name != "counts_K"}
        self._run.tokens_seen += round(values.pop("tokens"))
        trouble = self._count(step, values, int(known["samples_done"]))
        tokens_per_second = schema.tokens_of_step(self._job, step) / known["step_seconds"]
        peak = self._backend.peak_flops()
        spent = self._clock.seconds()
        self._write(
            step,
            {
                "loss": _finite(values["loss"]),
                "tokens_seen": self._run.tokens_seen,
                "learning_rate": known["learning_rate"],
                "grad_norm": _finite(values["grad_norm"]),
                "step_seconds": known["step_seconds"],
                "data_seconds": known["data_seconds"],
                "tokens_per_second": tokens_per_second,
                "mfu": tokens_per_second * self._flops / (peak * self._backend.devices) if peak else None,
                "memory_bytes": self._backend.memory_bytes(),
                "steps_skipped": self._run.skipped,
                "goodput": spent.get("step", 0.0) / sum(spent.values()),  # of this process
                **self._data_extras(metrics["counts_K"].tolist(), int(known["samples_done"])),
                **{name: _finite(value) for name, value in extras.items()},
            },
        )
        if trouble is not None:
            raise trouble

    def forget(self) -> None:
        """Leave out the step that is open: another will take its number."""
        self._pending = None

    def _count(self, step: int, values: dict[str, float], samples_done: int) -> Unstable | None:
        """Count the step; what to raise, once it is written, where too many were skipped."""
        job, run = self._job, self._run
        taken = take(job, run, step, stage_of(run, step, samples_done, self._stream), values)
        if not taken.skipped:
            return None
        seen = wrong(taken, values)
        self.event("skipped", step=step, wrong=seen, in_a_row=run.in_a_row)
        if (found := too_many(job, run)) is None:
            return None
        first, why = found
        return Unstable(f"step {step} of {self._directory.run_id} has {seen}, {why}", first, step)

    def _data_extras(self, counts: list[int], samples_done: int) -> dict[str, float]:
        """Tokens of each source so far, planned and actual, and what reading suffered; counts the step's."""
        seen = self._run.tokens_of
        for name, count in zip(self._stream.count_names, counts, strict=True):
            if name.startswith("tokens/"):
                source = name.removeprefix("tokens/")
                seen[source] = seen.get(source, 0) + count
            else:
                self._storage[name] += count
        planned = self._stream.planned_tokens(samples_done)
        return {
            "samples_done": samples_done,
            **{f"tokens/{source}": count for source, count in seen.items()},
            **{f"planned_tokens/{source}": round(count) for source, count in planned.items()},
            **self._storage,
        }

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        """Give the tracker files of this process's host, as one thing of a kind and a name."""
        if self._tracker is not None:
            self._tracker.keep(kind, name, files)

    def event(self, event: str, **facts: Any) -> None:
        """Append to the run's ledger, and say it in the terminal."""
        if self._terminal is not None:
            self._record(event, **facts)
            self._told = -math.inf  # again after this step: a thread that watches may have written in the midst of it
            self._terminal.say(event, {"attempt": self._run.attempt, **facts})

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._record("time")

    def _record(self, event: str, **facts: Any) -> None:
        """Append to the run's ledger, with how many steps are done and what the time was spent on: see `goodput`."""
        if self._terminal is None:
            return
        spent = {activity: round(seconds, 3) for activity, seconds in self._clock.seconds().items()}
        self._directory.record(event, self._run.attempt, **facts, at_step=self._run.step, spent=spent)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        if self._terminal is None or self._tracker is None:
            return
        line = {"step": step, "attempt": self._run.attempt, "time": time.time(), **values}
        append_line(self._directory.path / "metrics.jsonl", line)
        self._terminal.show(step, values)
        self._tell_news()

    def _tell_news(self) -> None:
        """Record what the tracker met with; it follows metrics.jsonl by itself."""
        if self._tracker is not None:
            for news in self._tracker.news():
                self.event("tracker", **news)


@contextmanager
def _giving_way_to(error: BaseException | None) -> Iterator[None]:
    """Around what may fail, too, where an error has ended the run: that is being raised, and says more."""
    try:
        yield
    except Exception as another:
        if error is None:
            raise
        if str(another) != str(error):
            print(f"gemcutter train: {another}", file=sys.stderr, flush=True)


def _finite(value: float) -> float | None:
    """As JSON can say it: null for what is no finite number."""
    return value if math.isfinite(value) else None

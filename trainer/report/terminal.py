"""A run in the terminal: a live line where there is a screen, plain lines where there is a file."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from data_pipeline.files import redacted

_EVENTS = {
    "start": "attempt {attempt} starts at step {step} on {processes} {device} process(es), run directory {directory}",
    "checkpoint": "checkpoint of step {step}",
    "copied": "checkpoint of step {step} copied to {place}",
    "save_failed": "the checkpoint of step {step} FAILED: {error}",
    "unverified": "the checkpoint of step {step} in {place} cannot be read back, so no older one is removed: {error}",
    "retain_failed": "an old checkpoint could not be removed: {error}",
    "quarantined": "the checkpoint of step {step} is BROKEN and was put aside: {reason}",
    "changed": "{key} is now {now}, was {was}",
    "profile": "trace of steps {first} to {last}, to be opened in ui.perfetto.dev: {files}",
    "skipped": "step {step} was SKIPPED, the {in_a_row}. in a row: {wrong}",
    "hang": "HANG: rank {ranks} on {host} did not arrive, {activity} of step {step}, for {seconds} s, and {key} allows "
    "{deadline:g}: {why}. Stacks of all processes: {stacks}",
    "lost": "LOST: rank {ranks} on {host}, {activity} of step {step}: {why}",
    "straggler": "rank {rank} on {host} is SLOW: it waits {seconds_per_step} s a step for its data, and the median is "
    "{median} s; that costs {share:.0%} of the time of all",
    "corruption": "CORRUPT: {what}",
    "rollback": "GOING BACK from step {from_step} to the checkpoint of step {to_step}, passing over {passed_over}: "
    "{why}; see {incident}",
    "stop": "stopping after step {step}, as asked by {by}",
    "failed": "attempt {attempt} FAILED after step {at_step}: {error}",
    "tracker": "{said}",
    "end": "finished step {step}",
}
_PLAIN_SECONDS = 10.0  # between lines where there is no screen


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more, which is no reason to end: rich itself would raise SystemExit, before a last save."""
        self.quiet = True


class Terminal:
    """Loss, tokens per second and time left."""

    def __init__(self, title: str, step: int, steps: int) -> None:
        self._console = _Console(stderr=True)
        self._steps, self._first, self._began = steps, step, time.monotonic()
        self._held_out = ""
        self._said = -_PLAIN_SECONDS
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=steps, completed=step, numbers="")

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, step: int, values: dict[str, Any]) -> None:
        """One step's metrics, or values beside them."""
        if "held_out_loss" in values:
            held_out = values["held_out_loss"]
            self._held_out = "  held-out none" if held_out is None else f"  held-out {held_out:.3f}"
        left = (time.monotonic() - self._began) / max(1, step - self._first) * (self._steps - step)
        loss = "none" if values["loss"] is None else f"{values['loss']:.3f}"
        numbers = f"loss {loss}{self._held_out}  {values['tokens_per_second']:,.0f} tokens/s  {_clock(left)} left"
        self._progress.update(self._task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said >= _PLAIN_SECONDS or step == self._steps):
            self._said = now
            self._console.print(f"step {step}/{self._steps}  {numbers}", highlight=False, soft_wrap=True)

    def say(self, event: str, facts: dict[str, Any]) -> None:
        """An event of the ledger, in words."""
        if event == "rollback":  # what comes says how long the rest takes
            self._first, self._began = facts["to_step"], time.monotonic()
        self._console.print(redacted(in_words(event, facts)), highlight=False, soft_wrap=True, markup=False)


def in_words(event: str, facts: dict[str, Any]) -> str:
    """An event of the ledger as a sentence."""
    return _EVENTS[event].format(**facts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

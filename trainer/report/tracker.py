"""Weights & Biases, the only module that knows it. One run for all attempts, under the run's own id."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from conf import schema
from trainer.run_directory import RunDirectory

if TYPE_CHECKING:
    import wandb


_LONGEST_ARTIFACT = 128  # characters of a name, which a project's runs share


class Tracker(Protocol):
    """Where metrics go besides metrics.jsonl."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Metrics of a step."""

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        """Files to keep with the run, as one thing of a kind and a name."""

    def close(self, failed: bool) -> None:
        """No more metrics."""


class NoTracker:
    """tracker=none"""

    def log(self, step: int, values: dict[str, Any]) -> None:
        pass

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        pass

    def close(self, failed: bool) -> None:
        pass


class WandbTracker:
    """tracker=wandb and tracker=offline.

    W&B is a witness, never a reason to stop: where the server does not answer at the start, the run is written offline
    for a later `wandb sync`; where its helper process dies, this attempt is no longer logged there.
    """

    def __init__(self, job: schema.Job, directory: RunDirectory) -> None:
        import wandb  # here, because importing it costs a second that other trackers need not pay

        options: dict[str, Any] = {
            "project": job.tracker.project,
            "entity": job.tracker.entity,
            "group": job.tracker.group,
            "tags": job.tracker.tags,
            "id": directory.run_id,
            "name": directory.run_id,
            "resume": "allow",
            "dir": str(directory.path),
            "config": dataclasses.asdict(job),
            "settings": wandb.Settings(console="off", silent=True, finish_timeout=600),
        }
        try:
            options["mode"] = "online" if job.tracker.name == "wandb" else "offline"
            self._run: wandb.Run | None = wandb.init(**options)
        except (wandb.errors.CommError, wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            print(
                f"W&B does not answer ({error}): this attempt is logged offline in {directory.path / 'wandb'}; "
                "run `wandb sync` on it later",
                file=sys.stderr,
            )
            wandb.teardown()  # its service would say that the id of the failed try is in use
            self._run = wandb.init(**{**options, "mode": "offline"})
        self._errors = (wandb.Error, OSError)
        self._artifact = wandb.Artifact
        self._try(lambda run: run.define_metric("*", step_metric="step"))

    def _try(self, send: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except self._errors as error:
            print(
                f"W&B failed ({error}): this attempt is logged there no longer, metrics.jsonl has all", file=sys.stderr
            )
            self._run = None

    def log(self, step: int, values: dict[str, Any]) -> None:
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        # `step` is a value, not W&B's own counter, which drops steps that are done again after a restart.
        self._try(lambda run: run.log({"step": step, **finite}))

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        def send(run: wandb.Run) -> None:
            artifact = self._artifact(f"{name}-{run.id}"[:_LONGEST_ARTIFACT], type=kind)
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)

        self._try(send)

    def close(self, failed: bool) -> None:
        self._try(lambda run: run.finish(exit_code=int(failed)))


def open_tracker(job: schema.Job, directory: RunDirectory) -> Tracker:
    """The tracker that `tracker.name` asks for."""
    return NoTracker() if job.tracker.name == "none" else WandbTracker(job, directory)

"""What the loop knows of a tracker."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from conf import schema
from trainer.liveness.stop import StopSignal
from trainer.run_directory import RunDirectory
from trainer.tracker.follower import Follower


class Tracker(Protocol):
    """Shows the rows of metrics.jsonl elsewhere. Nothing here waits for it but `close`, and that not for long."""

    def news(self) -> list[dict[str, Any]]:
        """What happened to it since this was last asked, each with `state` (one word) and `said` (for people)."""

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        """Files to keep with the run, as one thing of a kind and a name."""

    def close(self, failed: bool) -> None:
        """No more metrics."""


class NoTracker:
    """tracker=none"""

    def news(self) -> list[dict[str, Any]]:
        return []

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        pass

    def close(self, failed: bool) -> None:
        pass


def open_tracker(job: schema.Job, directory: RunDirectory, stop: StopSignal) -> Tracker:
    """The tracker that `tracker.name` asks for, which may ask the run to stop."""
    if job.tracker.name == "none":
        return NoTracker()
    return Follower(directory.path, directory.run_id, dataclasses.asdict(job), stop)

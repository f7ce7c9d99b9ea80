"""Saves of a run: a failed one is an incident that is reported and tried again, not the end, until too many fail."""

from __future__ import annotations

import time
from contextlib import suppress

from conf import schema
from conf.exits import DataError
from trainer import checkpoint
from trainer.build import Parts
from trainer.report import Report
from trainer.run import Run


class Saver:
    """Commits a run to its checkpoint directory and counts failures in a row."""

    def __init__(self, job: schema.Job, parts: Parts, report: Report) -> None:
        self._keys, self._parts, self._report = job.checkpoint, parts, report
        self._failed = 0
        self._retry_at: int | None = None

    def owes(self, step: int) -> bool:
        """Whether a save that failed or was put off is to be tried after this step."""
        return step == self._retry_at

    def save(self, run: Run) -> None:
        """Commit the run; what fails is tried again some steps on, as `owes` says. Every process calls it.

        Raises as `insist` does. While steps are skipped the save is put off: where what they meet is a broken model,
        it would take the place of a sound one.
        """
        if run.in_a_row:
            self._retry_at = run.step + 1
        else:
            self._commit(run)

    def _commit(self, run: Run) -> bool:
        """Try to commit the run as it stands; says whether it is committed. Raises DataError as `insist` does."""
        directory, backend = self._parts.directory.checkpoints, self._parts.backend
        attempt = checkpoint.new_attempt(run.attempt, backend)
        try:
            checkpoint.save(directory, run.step, attempt, run.tensors(), run.state(), backend)
        except checkpoint.SaveError as error:
            if error.committed:  # it could not be read back, so nothing is removed for it
                self._report.event("checkpoint", step=run.step)
                return True
            self._failed += 1
            self._retry_at = run.step + 2**self._failed
            if backend.processes.rank == 0:  # what was written of it would keep a full disk full, for the ledger too
                with suppress(OSError, DataError):
                    checkpoint.discard(directory, run.step, attempt)
            self._report.event("save_failed", step=run.step, error=str(error))
            if self._failed >= self._keys.max_failed:
                raise DataError(
                    f"{self._failed} saves in a row failed, the last with: {error}. Committed steps in {directory}: "
                    f"{checkpoint.committed_steps(directory) or 'none'}. Free space there and start again; or move "
                    "that folder to another disk, and name its parent with checkpoint.directory"
                ) from error
            return False
        self._failed, self._retry_at = 0, None
        self._report.event("checkpoint", step=run.step)
        if backend.processes.rank == 0:
            self._retain()
        return True

    def _retain(self) -> None:
        """Remove old steps; what cannot be removed now is tried again after the next save."""
        try:
            keys = self._keys
            checkpoint.retain(self._parts.directory.checkpoints, keys.keep_last, keys.keep_every, keys.keep_hours)
        except (OSError, DataError) as error:
            self._report.event("retain_failed", error=str(error))

    def insist(self, run: Run) -> None:
        """Commit before the process ends: try again, after a pause that grows, until it works.

        Raises DataError (exit code 79) after `checkpoint.max_failed` failures in a row.
        """
        while not self._commit(run):
            time.sleep(2.0**self._failed)

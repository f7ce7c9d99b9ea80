"""Saves of a run: beside the steps, in one place or two, and never the end of it until too many have failed.

What is written is a copy in host memory, so that the steps go on meanwhile. There is one such copy: a save that becomes
due while another is still being written waits for it.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from conf import schema
from conf.exits import DataError, DivergedError
from trainer import checkpoint
from trainer.anomaly.spikes import suspects
from trainer.build import Parts
from trainer.checkpoint import BrokenError, Folder, Holding, Index, Snapshot, Store
from trainer.checkpoint.together import INCIDENTS, ElsewhereError, Task, Tasks, Together
from trainer.report import Report, Stopwatch
from trainer.run import Run

_FIRST_PAUSE = 1.0  # seconds before the last step of a run is tried again; doubled each time


class Place:
    """Where checkpoints go, and how it goes there.

    step      newest that this job committed there
    saving    the one that is under way, or was
    failed    saves in a row that did not work
    retry     whether the pause after the last of these is over, as all agree
    given_up  what the run ends with, once these are too many: nothing more is tried
    """

    FLAGS = Together.FLAGS + 1

    def __init__(self, store: Store) -> None:
        self.store, self.work = store, Together()
        self.step: int | None = None
        self.saving: int | None = None
        self.failed, self.retry = 0, False
        self.given_up: DataError | None = None
        self._retry_at: float | None = None

    def begin(self, step: int, tasks: Tasks) -> None:
        """Start on a save."""
        self.saving, self.retry, self._retry_at = step, False, None
        self.work.begin(tasks)

    def flags(self, rank: int) -> list[float]:
        """What this process adds to the agreement; of the pause the clock of the first one decides."""
        over = rank == 0 and self._retry_at is not None and time.monotonic() >= self._retry_at
        return [*self.work.flags(rank), float(over)]

    def agreed(self, sums: Sequence[float], processes: int) -> None:
        """Go on as the sums of all flags say."""
        self.retry = sums[-1] > 0
        self.work.agreed(sums[:-1], processes)

    def count_failure(self, pause: float) -> None:
        """One more; the pauses between them double."""
        self._retry_at = time.monotonic() + pause * 2.0**self.failed
        self.failed += 1

    def give_up(self, error: DataError) -> None:
        """That was one too many."""
        self.given_up, self._retry_at = error, None

    def count_success(self, step: int) -> None:
        """This step stands."""
        self.step, self.failed = step, 0


class Saver:
    """Commits a run to `checkpoint.directory`, and copies what is committed there to `checkpoint.bucket`."""

    def __init__(self, job: schema.Job, run: Run, parts: Parts, report: Report, clock: Stopwatch) -> None:
        self._job, self._keys, self._run, self._backend = job, job.checkpoint, run, parts.backend
        self._report, self._clock = report, clock
        self._directory = Place(parts.directory.checkpoints)
        self._bucket = None if parts.directory.bucket is None else Place(parts.directory.bucket)
        self.places = [self._directory] if self._bucket is None else [self._directory, self._bucket]
        self._snapshot = Snapshot()
        self._put_off = False
        self._copy_due = False  # whether the bucket is to get the next step that is committed
        self._wanted: int | None = None  # the step that the bucket is to get next
        self._leaving = False

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._leaving = True
        if isinstance(error, DivergedError):  # which all raise together; what was sound before is worth keeping
            with self._clock.during("save"):
                for place in self.places:
                    self._wait_for(place)

    def begin(self) -> None:
        """See to it that the bucket gets the step that the run goes on from, where a job before could not.

        Every process calls it. Raises DataError where storage does not answer.
        """
        if self._bucket is None:
            return
        first, step, there = self._first, self._run.step, [place.store for place in self.places]
        have = checkpoint.on_all(
            self._backend, lambda: [first and step in checkpoint.committed_steps(store) for store in there]
        )
        for place, has in zip(self.places, self._backend.agree(have), strict=True):
            place.step = step if has else None
        if self._directory.step is not None and self._bucket.step is None:
            self._wanted = step

    def flags(self) -> list[float]:
        """What this process adds to the agreement of a step."""
        rank = self._backend.processes.rank
        return [flag for place in self.places for flag in place.flags(rank)]

    def agreed(self, sums: Sequence[float]) -> None:
        """Go on with what is under way, as the sums of all flags say.

        Raises DataError (exit code 79) once `checkpoint.max_failed` saves to one place have failed in a row, and what
        was under way to the other is there.
        """
        self._go_on(sums)
        self._end_where_given_up()

    def owes(self) -> bool:
        """Whether a save that failed or was put off is to be tried now."""
        return self._put_off or (self._directory.retry and not self._directory.work.busy)

    def save(self) -> None:
        """Begin to commit the run as it stands; every process calls it, and `agreed` completes it. Raises as that does.

        While steps are skipped the save is put off: where what they meet is a broken model, it would take the place of
        a sound one.
        """
        run = self._run
        self._copy_due |= run.step % (self._keys.bucket_every or self._keys.every) == 0
        self._put_off = run.in_a_row > 0
        if not self._put_off:
            self._wait_for(self._directory)
            self._end_where_given_up()  # else one save after the other would keep it from being looked at
            if self._directory.given_up is None:
                self._begin(self._snapshot.take(run.tensors(), self._first))

    def finish(self) -> None:
        """Commit the run everywhere before the process ends: try again, after a pause that grows, until it works.

        Raises DataError as `agreed` does.
        """
        step, self._wanted = self._run.step, None  # no older step may keep this one waiting
        self._insist(self._directory, step, lambda: self._begin(checkpoint.holding(self._run.tensors(), self._first)))
        self._bring(step if self._directory.given_up is None else None)

    def catch_up(self) -> None:
        """Bring the bucket what it still has to get, where no step was left to do. Raises as `agreed` does."""
        step, self._wanted = self._wanted, None
        self._bring(step)

    @property
    def _first(self) -> bool:
        return self._backend.processes.rank == 0

    def _go_on(self, sums: Sequence[float]) -> None:
        for number, place in enumerate(self.places):
            place.agreed(sums[number * Place.FLAGS : (number + 1) * Place.FLAGS], self._backend.processes.size)
        bucket = self._bucket
        if bucket is None or bucket.work.busy or bucket.given_up is not None or self._wanted is None:
            return
        if bucket.retry or not bucket.failed:
            self._copy(bucket, self._wanted)

    def _end_where_given_up(self) -> None:
        if any(place.work.busy for place in self.places):
            return  # what may still become a checkpoint is worth waiting for
        for place in self.places:
            if place.given_up is not None:
                raise place.given_up

    def _wait_for(self, place: Place) -> None:
        while place.work.busy:
            place.work.wait()
            begun = place.work.begun
            self._go_on(self._backend.agree(self.flags()))
            if place.work.begun > begun:  # on every process alike; and who gets on does not hang
                self._clock.begin("save")

    def _insist(self, place: Place, step: int, begin: Callable[[], None]) -> None:
        """Have a step committed in a place, or give up on it; its first try comes at once, whatever failed before."""
        pause = _FIRST_PAUSE
        self._wait_for(place)
        while place.step != step and place.given_up is None:
            begin()
            self._wait_for(place)
            if place.step != step and place.given_up is None:
                time.sleep(min(pause, self._keys.retry_seconds))
                pause *= 2

    def _bring(self, step: int | None) -> None:
        """Have the bucket get this step, if any, and nothing under way any more."""
        if self._bucket is not None:
            if step is not None:
                self._insist(self._bucket, step, functools.partial(self._copy, self._bucket, step))
            self._wait_for(self._bucket)
        self._end_where_given_up()

    def _begin(self, holding: Holding) -> None:
        place, step, state, processes = self._directory, self._run.step, self._run.state(), self._backend.processes
        attempt = checkpoint.new_attempt(self._run.attempt, self._backend)

        def write() -> Index:
            return checkpoint.write_payload(place.store, step, attempt, processes.rank, holding)

        def commit() -> None:
            checkpoint.commit(place.store, step, attempt, processes.size, state)

        place.begin(step, self._save(place, step, attempt, write, commit))

    def _copy(self, bucket: Place, step: int) -> None:
        """Begin to copy a committed step to the bucket, each process its share of the files."""
        source, processes, self._wanted = self._directory.store, self._backend.processes, None
        attempt = checkpoint.new_attempt(self._run.attempt, self._backend)

        def write() -> Index:
            return checkpoint.copy_payload(source, bucket.store, step, attempt, processes.rank, processes.size)

        def commit() -> None:
            checkpoint.copy_commit(source, bucket.store, step, attempt)

        bucket.begin(step, self._save(bucket, step, attempt, write, commit))

    def _save(self, place: Place, step: int, attempt: str, write: Callable[[], Index], commit: Task) -> Tasks:
        """Commit a step, and then old ones may go."""
        where = {"step": step, "place": str(place.store)}

        try:
            index = yield from checkpoint.committing(self._first, write, commit)
        except INCIDENTS as error:
            self._failed(place, step, attempt, error)
            return
        self._report.event("checkpoint" if place is self._directory else "copied", **where)
        try:
            unread = yield from checkpoint.reading_back(place.store, step, attempt, index, self._first)
        except INCIDENTS as error:
            self._failed(place, step, attempt, error)
            return
        place.count_success(step)
        if unread is not None:  # storage does not answer: what was committed stands, and nothing older may go
            self._report.event("unverified", **where, error=str(unread))
            return
        if self._bucket is not None and place is self._directory and self._copy_due:
            self._wanted, self._copy_due = step, False
        if self._leaving or self._run.in_a_row:  # the run goes back, or may soon, to a step that retention would remove
            return
        retain = functools.partial(self._retain, place, self._owed(), self._ways_back())
        try:
            yield retain if self._first else None
        except INCIDENTS as error:  # tried again after the next save
            self._report.event("retain_failed", **where, error=str(error))

    def _owed(self) -> list[int]:
        """Steps that the bucket still has to get."""
        copying = self._bucket.saving if self._bucket is not None and self._bucket.work.busy else None
        return [step for step in (self._wanted, copying) if step is not None]

    def _ways_back(self) -> list[int]:
        """Of each reason to go back the last step before it: what followed the last comparison of bits may be corrupt,
        and what followed the first of some skipped steps may be spoilt."""
        return [self._run.digested, *(taken.step - 1 for taken in suspects(self._job, self._run)[:1])]

    def _retain(self, place: Place, owed: Sequence[int], ways_back: Sequence[int]) -> None:
        """Remove old steps, but those owed and the newest ones that are no later than these ways back."""
        keys, steps = self._keys, checkpoint.committed_steps(place.store)
        back = [step for last in ways_back for step in [step for step in steps if step <= last][-1:]]
        checkpoint.retain(place.store, keys.keep_last, keys.keep_every, keys.keep_hours, [*owed, *back])

    def _failed(self, place: Place, step: int, attempt: str, error: Exception) -> None:
        """Count it, tell it, and want it again, or give up."""
        place.count_failure(self._keys.retry_seconds)
        if place is self._bucket:
            self._wanted = max(step, self._wanted or 0)
        if self._first and isinstance(place.store, Folder) and not isinstance(error, BrokenError):
            # What was written of it would keep a full disk full, for the ledger too. Else retention removes it.
            with suppress(OSError, DataError):
                checkpoint.discard(place.store, step, attempt)
        elif not self._first and not isinstance(error, ElsewhereError):
            print(f"process {self._backend.processes.rank}: {error}", file=sys.stderr)
        what = "is not as it was written" if isinstance(error, BrokenError) else "could not be written"
        told = f"{place.store}/{checkpoint.step_name(step)}/{attempt} {what}: {error}"
        self._report.event("save_failed", step=step, place=str(place.store), error=told)
        if place.failed >= self._keys.max_failed:
            last_words = DataError(
                f"{place.failed} saves in a row failed, the last with: {told}. Committed steps in {place.store}: "
                f"{_known(place.store)}. Free space there and start again; or move that folder to another disk, and "
                "name its parent with checkpoint.directory"
            )
            last_words.__cause__ = error
            place.give_up(last_words)


def _known(store: Store) -> str:
    """The committed steps of a store that may not answer."""
    try:
        return str(checkpoint.committed_steps(store) or "none")
    except DataError as error:
        return f"unknown, as {error}"

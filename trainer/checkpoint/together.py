"""Tasks that all processes do in the background, one after the other.

Once a step the loop sums some numbers over all processes. These tell when every process has done its task, and all go
on to the next: no process is ever a task ahead, and what fails on one is known to all one step later. Nothing here
needs a collective operation of its own.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future

from conf.exits import DataError

Task = Callable[[], None]
Tasks = Generator[Task | None, None, None]  # None: only other processes have something to do


class ElsewhereError(Exception):
    """Another process could not do its task."""


_POLL = 1.0  # seconds a process waits for its own task before it shows the others that it is alive
INCIDENTS = (OSError, DataError, ElsewhereError)  # what a save may fail with


class Together:
    """Tasks of all processes, one after the other.

    begun  tasks so far, counted on every process where any has one
    """

    FLAGS = 3

    def __init__(self) -> None:
        self._tasks: Tasks | None = None
        self.task: Future[None] | None = None
        self.begun = 0

    @property
    def busy(self) -> bool:
        """Whether there is something that not all have done."""
        return self._tasks is not None

    def begin(self, tasks: Tasks) -> None:
        """Start on these. Every process calls it after the same step."""
        self._tasks = tasks
        self._go_on(None)

    def wait(self) -> None:
        """Wait until this process has done its own task, but no longer than the others may go without a word of it."""
        if self.task is not None:
            concurrent.futures.wait([self.task], timeout=_POLL)

    def flags(self, rank: int) -> list[float]:
        """What this process adds to the agreement: has it done its task, could it not, and who is it then."""
        if self.task is None:
            return [float(self.busy), 0.0, 0.0]
        if not self.task.done():
            return [0.0, 0.0, 0.0]
        failed = self.task.exception() is not None
        return [float(not failed), float(failed), float(failed) * rank]

    def agreed(self, sums: Sequence[float], processes: int) -> None:
        """Go on to the next task where the sums of all flags say that every process is through with this one.

        Raises what the tasks do not catch; then there are none left.
        """
        done, failed, who = sums
        if not self.busy or done + failed < processes:
            return
        if not failed:
            self._go_on(None)
            return
        if self.task is not None and (error := self.task.exception()) is not None:
            self._go_on(error)
        else:
            by = f"process {who:.0f}" if failed == 1 else f"{failed:.0f} other processes"
            self._go_on(ElsewhereError(f"{by} could not; its own output says why"))

    def _go_on(self, error: BaseException | None) -> None:
        assert self._tasks is not None
        tasks, self._tasks, self.task = self._tasks, None, None
        self.begun += 1
        try:
            task = next(tasks) if error is None else tasks.throw(error)
        except StopIteration:
            return
        self._tasks, self.task = tasks, None if task is None else _in_background(task)


def _in_background(task: Task) -> Future[None]:
    """Begin a task. A process that ends does not wait for it: half a file that nothing refers to is no harm."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=work, name="save", daemon=True).start()
    return future

"""Tasks on processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from conf.exits import DataError
from conf.processes import deafen, end_with
from data_pipeline.engine.stage import MOST_DEATHS, shown


@dataclass
class Local:
    """So many processes; this one alone where it is one.

    When one is killed, what all were doing is lost and done again, one by one, before anything else: so the task at
    fault is known, and costs the others a second beginning at most.

    As a context it keeps the processes from one list of tasks to the next; else they end with each.
    """

    workers: int
    _executor: ProcessPoolExecutor | None = field(default=None, init=False, repr=False)
    _children: set[BaseProcess] = field(default_factory=set, init=False, repr=False)
    _keeps: bool = field(default=False, init=False, repr=False)

    def __enter__(self) -> Local:
        self._keeps = True
        return self

    def __exit__(self, *_: object) -> None:
        self._keeps = False
        self._end()

    def run(self, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        """See `Engine.run`."""
        if self.workers == 1:
            yield from map(work, tasks)
            return
        try:
            yield from self._run(work, deque(tasks))
        except BaseException:  # an error or a signal ends us: nobody waits for the others
            self._end()
            raise
        if not self._keeps:
            self._end()

    def _run(self, work: Callable[[tuple[int, Any]], int], waiting: deque[tuple[int, Any]]) -> Iterator[int]:
        suspects = deque[tuple[int, Any]]()
        deaths: Counter[int] = Counter()
        while waiting or suspects:
            alone = bool(suspects)
            under_way: dict[Future[int], tuple[int, Any]] = {}
            try:
                yield from self._through(work, suspects if alone else waiting, under_way, alone)
            except BrokenProcessPool as error:
                self._end()
                lost = sorted(under_way.values(), key=lambda task: task[0])
                suspects.extendleft(reversed(lost))
                if alone and lost:
                    number = lost[0][0]
                    deaths[number] += 1
                    if deaths[number] == MOST_DEATHS:
                        raise DataError(
                            f"{shown(lost[0])} killed {MOST_DEATHS} workers, most likely for want of "
                            "memory: give the machine more, or take out what it reads"
                        ) from error

    def _through(
        self,
        work: Callable[[tuple[int, Any]], int],
        waiting: deque[tuple[int, Any]],
        under_way: dict[Future[int], tuple[int, Any]],
        once: bool,
    ) -> Iterator[int]:
        """Do all that waits, or the first only. `under_way` is what was begun and is not done."""
        executor = self._begun()
        while waiting or under_way:
            while waiting and len(under_way) < (1 if once else self.workers):
                future = executor.submit(work, waiting[0])
                under_way[future] = waiting.popleft()
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                number = future.result()
                del under_way[future]
                yield number
            if once and not under_way:
                return

    def _begun(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # Forking a process that already runs threads (pyarrow does) can deadlock the child.
            context = multiprocessing.get_context("spawn")
            self._children = set(multiprocessing.active_children())
            self._executor = ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=(os.getpid(),))
        return self._executor

    def _end(self) -> None:
        if self._executor is not None:
            for child in set(multiprocessing.active_children()) - self._children:
                child.kill()
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


def _start(parent: int) -> None:
    """Workers end with the one that started them, and leave it to that one to answer signals."""
    deafen()
    end_with(parent)

"""Tasks on processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from conf.exits import DataError
from conf.processes import deafen, end_with
from data_pipeline.engine.stage import MOST_DEATHS


@dataclass(frozen=True)
class Local:
    """So many processes. When one is killed, what all were doing is lost and done again, one by one, before anything
    else: so the task at fault is known, and costs the others a second beginning at most."""

    workers: int

    def run(self, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        """See `Engine.run`."""
        waiting, suspects = deque(tasks), deque[tuple[int, Any]]()
        deaths: Counter[int] = Counter()
        while waiting or suspects:
            alone = bool(suspects)
            under_way: dict[Future[int], tuple[int, Any]] = {}
            try:
                yield from _pool(work, suspects if alone else waiting, 1 if alone else self.workers, under_way, alone)
            except BrokenProcessPool as error:
                lost = sorted(under_way.values(), key=lambda task: task[0])
                suspects.extendleft(reversed(lost))
                if alone:
                    number = lost[0][0]
                    deaths[number] += 1
                    if deaths[number] == MOST_DEATHS:
                        raise DataError(
                            f"task {number} ({lost[0][1]}) killed {MOST_DEATHS} workers, most likely for want of "
                            "memory: give the machine more, or take out what it reads"
                        ) from error


def _pool(
    work: Callable[[tuple[int, Any]], int],
    waiting: deque[tuple[int, Any]],
    workers: int,
    under_way: dict[Future[int], tuple[int, Any]],
    once: bool,
) -> Iterator[int]:
    """Do all that waits, or the first only, in a pool of its own. `under_way` is what was begun and is not done."""
    # Forking a process that already runs threads (pyarrow does) can deadlock the child.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(),))
    others = set(multiprocessing.active_children())
    try:
        while waiting or under_way:
            while waiting and len(under_way) < (1 if once else workers):
                future = executor.submit(work, waiting[0])
                under_way[future] = waiting.popleft()
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                number = future.result()
                del under_way[future]
                yield number
            if once and not under_way:
                return
    finally:
        for child in set(multiprocessing.active_children()) - others:  # also where an error or a signal ends us
            child.kill()
        executor.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    """Workers end with the one that started them, and leave it to that one to answer signals."""
    deafen()
    end_with(parent)

"""Work on a stream in several processes, with the results in the order of the stream and bounded memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from conf.exits import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
OrderedMap = Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]

IN_FLIGHT = 3  # items per worker that are handed out ahead of the result that is waited for


@contextmanager
def ordered_map(workers: int) -> Iterator[OrderedMap]:
    """A `map` over `workers` processes; with one worker, over this one. Only the speed depends on the number.

    Closing the returned iterator early drops what was handed out ahead. Raises DataError when a worker dies.
    """
    if workers == 1:
        yield map
        return
    # Forking a process that already runs threads (pyarrow does) can deadlock the child.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))

    def run(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(executor.submit(function, item))
                if len(ahead) >= IN_FLIGHT * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"one of {workers} curation workers died without a word, most likely for want of memory: "
                "nothing was written; use fewer with curate.workers"
            ) from error
        finally:
            for future in ahead:
                future.cancel()

    try:
        yield run
    finally:
        executor.shutdown(cancel_futures=True)

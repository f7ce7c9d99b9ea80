"""Processes of a run as threads of this one, where what they do together is to be tested, and no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trainer.backend.base import World


class Thread:
    """Of a backend what checkpoints need: who this is, and the sums of some numbers of all."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, said: list[list[float]]) -> None:
        self.processes = World(rank, size)
        self._meeting, self._said = meeting, said

    def agree(self, values: Sequence[float]) -> list[float]:
        self._said[self.processes.rank] = [float(value) for value in values]
        self._meeting.wait(timeout=60)
        sums = [sum(each) for each in zip(*self._said, strict=True)]
        self._meeting.wait(timeout=60)
        return sums


def on_each(size: int, work: Callable[[Any], Any]) -> list[Any]:
    """What each of so many processes gives, or raises."""
    meeting, said = threading.Barrier(size), [[0.0] for _ in range(size)]

    def one(rank: int) -> Any:
        try:
            return work(Thread(rank, size, meeting, said))
        except Exception as error:  # noqa: BLE001  # to be looked at by the test
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))

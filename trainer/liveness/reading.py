"""A load that gets on is no hang of the process that reads: each read of a checkpoint shows that it moves.

Those that have read their share wait for it, as for anything else, at most `hang.start_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from trainer.checkpoint import Committed
from trainer.checkpoint.store import Store, patient
from trainer.report.stopwatch import Stopwatch


class Reading:
    """A store whose reads tell a clock that this process gets on. For its main thread alone: others have no clock."""

    def __init__(self, store: Store, clock: Stopwatch) -> None:
        self._store, self._clock = store, clock

    def __str__(self) -> str:
        return str(self._store)

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        data = self._store.read(name, begin, length)
        self._clock.get_on()
        return data

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        self._store.write(name, chunks)

    def create(self, name: str, data: bytes) -> None:
        self._store.create(name, data)

    def size(self, name: str) -> int | None:
        return self._store.size(name)

    def names(self, folder: str = "") -> list[str]:
        return self._store.names(folder)

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def forget(self, name: str) -> None:
        self._store.forget(name)

    def within(self, folder: str) -> Reading:
        return Reading(self._store.within(folder), self._clock)


def opened_by(clock: Stopwatch, checkpoint: Committed) -> Committed:
    """A checkpoint that was found before, whose reads now tell the clock."""
    return replace(checkpoint, payload=patient(Reading(checkpoint.payload, clock)))

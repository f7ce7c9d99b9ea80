"""A request to stop, from a signal of the scheduler or the keyboard."""

from __future__ import annotations

import signal
from types import FrameType

from trainer.backend import Backend

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopSignal:
    """While entered, the signals of `SIGNALS` ask for a stop instead of ending the process."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._asked = False

    def __enter__(self) -> StopSignal:
        self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process calls it and gets the same answer."""
        return self._backend.agree([float(self._asked)])[0] > 0

"""A request to stop: a signal of the scheduler or the keyboard, or whoever else calls `StopSignal.ask`."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopSignal:
    """While entered, the signals of `SIGNALS` ask for a stop instead of ending the process.

    asked_by  who asked this process first, in words; None: nobody
    """

    def __init__(self) -> None:
        self.asked_by: str | None = None

    def __enter__(self) -> StopSignal:
        self._previous = {number: signal.signal(number, self._received) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)

    def ask(self, by: str) -> None:
        """Ask this process to stop, from any thread. All processes then stop after the same step."""
        self.asked_by = self.asked_by or by

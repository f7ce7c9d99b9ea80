"""A request to stop: a signal of the scheduler or the keyboard, or whoever else calls `StopSignal.ask`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

from conf.processes import STOP_SIGNALS, answer, stop_signals

# Who may ask, as all processes know them. Whoever else asks is known by name to the process that was asked.
MAINTENANCE, PREEMPTION = "maintenance of the host", "preemption of the host"
_ASKERS = (*(number.name for number in STOP_SIGNALS), MAINTENANCE, PREEMPTION)


class StopSignal:
    """Whether this process was asked to stop, and what all processes make of it.

    asked_by  who asked this process first, in words; None: nobody
    """

    VOTES = len(_ASKERS) + 1

    def __init__(self) -> None:
        self.asked_by: str | None = None

    def listen(self) -> None:
        """From now on `stop_signals` ask for a stop instead of ending this process."""
        for number in stop_signals():
            signal.signal(number, self._received)
        answer()

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)

    def ask(self, by: str) -> None:
        """Ask this process to stop, from any thread. All processes then stop after the same step."""
        self.asked_by = self.asked_by or by

    def votes(self) -> list[float]:
        """What `agreed` needs the sums of, over all processes."""
        by = self.asked_by
        return [float(by == asker) for asker in _ASKERS] + [float(by is not None and by not in _ASKERS)]

    def agreed(self, votes: Sequence[float]) -> str | None:
        """Who asked any of the processes, from the sums of their `votes`; None: nobody, and all go on."""
        who = [asker for asker, count in zip(_ASKERS, votes, strict=False) if count]
        if votes[-1]:
            who.append(self.asked_by if self.asked_by and self.asked_by not in _ASKERS else "another process")
        return " and ".join(who) or None

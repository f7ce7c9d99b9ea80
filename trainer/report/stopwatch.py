"""Where the time of this process goes, and how far it has come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Stopwatch:
    """One activity at a time; every second since the process began belongs to exactly one.

    Read by other threads: its state is one object, replaced whole.

    began     when the process began, on the clock of `boot_seconds`
    activity  what this process is doing
    since     monotonic time at which it began that, or came a piece further in it, seconds
    moves     changes of activity so far; the same on all processes when all have come equally far
    """

    def __init__(self) -> None:
        self.began = process_start()
        since = self.began - (boot_seconds() - time.monotonic())  # monotonic time stands still while the host sleeps
        self._at: tuple[str, float, int, dict[str, float]] = "start", since, 0, {}

    @property
    def activity(self) -> str:
        return self._at[0]

    @property
    def since(self) -> float:
        return self._at[1]

    @property
    def moves(self) -> int:
        return self._at[2]

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Around an activity within another, which goes on afterwards."""
        outer = self.activity
        self.begin(activity)
        try:
            yield
        finally:
            self.begin(outer)

    def begin(self, activity: str) -> None:
        """What goes on until something else is begun."""
        now = time.monotonic()
        was, since, moves, ended = self._at
        self._at = activity, now, moves + 1, {**ended, was: ended.get(was, 0.0) + now - since}

    def get_on(self) -> None:
        """What goes on has come a piece further: on this process, so it is no move."""
        now = time.monotonic()
        activity, since, moves, ended = self._at
        self._at = activity, now, moves, {**ended, activity: ended.get(activity, 0.0) + now - since}

    def seconds(self) -> dict[str, float]:
        """Seconds of each activity so far; together all since the process began."""
        activity, since, _, ended = self._at
        return {**ended, activity: ended.get(activity, 0.0) + time.monotonic() - since}


def process_start() -> float:
    """When this process began, on the clock of `boot_seconds`, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


def boot_seconds() -> float:
    """Seconds since this host was booted: a clock that all its processes share, and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Which boot of which host this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

"""Where the time of this process goes, and how far it has come."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Stopwatch:
    """One activity at a time; every second since the process began belongs to exactly one.

    Read by other threads: each attribute is replaced whole.

    activity  what this process is doing
    since     monotonic time at which it began that, seconds
    moves     changes of activity so far; the same on all processes when all have come equally far
    """

    def __init__(self) -> None:
        self.activity, self.since, self.moves = "start", process_start(), 0
        self._seconds: defaultdict[str, float] = defaultdict(float)

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
        self._seconds[self.activity] += now - self.since
        self.activity, self.since, self.moves = activity, now, self.moves + 1

    def seconds(self) -> dict[str, float]:
        """Seconds of each activity so far; together all since the process began."""
        return self._seconds | {self.activity: self._seconds[self.activity] + time.monotonic() - self.since}


def process_start() -> float:
    """When this process began, on the clock of `time.monotonic`, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # since boot
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return ticks / os.sysconf("SC_CLK_TCK") - asleep

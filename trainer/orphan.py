"""Whether the launcher of this process has died: then nobody would start it again, and yet it would hold the run."""

from __future__ import annotations

import os
from collections.abc import Callable

LAUNCHER = "GEMCUTTER_LAUNCHER"  # variable with the process id of a launcher of ours, which it leaves its children


def orphaned_by(launcher: str | None) -> Callable[[], bool]:
    """Whether a launcher, where this process has one, is not there any more; to be asked again and again."""
    return lambda: launcher is not None and os.getppid() != int(launcher)

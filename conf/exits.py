"""Exit codes of every command, the errors that carry them, and which of them a restart can help.

A scheduler reads the code to decide whether a restart can help, so a code is a promise and never changes its meaning.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

DONE = 0
LOST = 1  # another process or the connection to it; to launchers a code like any that is not named here
STOPPED = 75  # stopped on request and saved: start me again
HANG = 76
DIVERGED = 77  # the loss is not a number, or state was silently corrupted
CONFIG = 78  # a restart meets the same error: never restart
DATA = 79  # data or storage failed


class ConfigError(Exception):
    """What the user asked for cannot be done: the message names the value, its origin and the remedy."""

    code = CONFIG


class DataError(Exception):
    """Data or storage is missing, broken or not what its manifest says."""

    code = DATA


class DivergedError(Exception):
    """Training produced a loss or a gradient that is not a finite number."""

    code = DIVERGED


class LostError(Exception):
    """Another process did not arrive, or left: `code` is that with which all of them end."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


ERRORS = (ConfigError, DataError, DivergedError, LostError)

# The budget of `launch.restarts` that a restart after a code is taken from. None: it is not tried. Whoever asked for a
# stop asks again for a start; a run that diverged has gone back as often as it may, and would diverge again.
_FAILURES: dict[int, str | None] = {
    DONE: None, STOPPED: None, HANG: "hang", DIVERGED: None, CONFIG: None, DATA: "data"
}  # fmt: skip


def failure(code: int) -> str | None:
    """The class of a failure, by which restarts are counted; None where none is tried. What we do not name, such as a
    kill or a crash of the interpreter, is the machine's: infrastructure."""
    return _FAILURES.get(code, "infrastructure")


def for_launcher(suffix: str = "") -> Path | None:
    """The file in which this process says how it ends (no suffix) or lives (`.beat`); None where no launcher reads it.

    It is named by the place on this host, which stays: where a host joins, torch starts the others anew, with other
    ranks, and their launchers stay.
    """
    folder = os.environ.get("GEMCUTTER_EXIT_CODES")
    return None if folder is None else Path(folder, os.environ.get("LOCAL_RANK", "0") + suffix)


def declare(code: int) -> None:
    """Tell `trainer.elastic` how this process ends: once its peers notice, the launcher may kill it before it can."""
    if path := for_launcher():
        with suppress(OSError):  # a full disk: then what this process ends with must tell
            path.write_text(str(code))


def begin() -> None:
    """What the process that was in this one's place said is over."""
    for suffix in ("", ".beat"):
        if path := for_launcher(suffix):
            path.unlink(missing_ok=True)

"""What a process and those it starts agree on: which signals ask for a stop, that none outlives its starter, and that
none ends because nobody reads what it says.

Standard library only, and little of it: it is loaded first, so that no signal comes too early.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# What the keyboard, a terminal that closes and schedulers ask a job to stop with; Slurm sends what `--signal` names.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)

STARTER = "GEMCUTTER_STARTER"  # the variable that names the process which a child must not outlive

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def starter() -> dict[str, str]:
    """What the environment of a child says of this process."""
    return {STARTER: str(os.getpid())}


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those of `STOP_SIGNALS` that this process is to answer: SIGHUP not where `nohup` has it ignored."""
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if number is not signal.SIGHUP or hangs_up)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around starting a process: stop signals wait, here until it is started, and there until it can answer them.

    A child inherits that they wait, through `exec` too, and ends it with `answer` or by having handlers that may come.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer() -> None:
    """Let stop signals come, those too that waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def deafen() -> None:
    """Let stop signals wait in this thread, and in threads and processes that it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def ignore() -> None:
    """How this process ends is settled, and a signal that comes until its last moment must not change that.

    Not `deafen`, which the threads that are there already do not hear of.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with(parent: int | None = None) -> None:
    """Have the kernel kill this process when the one that started it is gone, however that went (default: `starter`).

    A launcher that was killed can end nobody, and what it left would write beside the next attempt. What the kernel
    watches is the thread that started us, so launchers start from their main thread. Without a starter nothing is done.
    """
    named = os.environ.pop(STARTER, "0")  # those that we start have another one
    parent = parent or int(named)
    if not parent:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before we had asked
        os.kill(os.getpid(), signal.SIGKILL)


class _Unheard:
    """A stream whose text is lost where it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def speak_on() -> None:
    """From now on no message ends this process or changes its exit code: the terminal may be gone, or its pipe closed.

    What stands in the way of a message is no fault of the job, and files hold whatever counts.
    """
    if not isinstance(sys.stderr, _Unheard):
        sys.stderr = cast(TextIO, _Unheard(sys.stderr))

"""What a process and those it starts agree on: which signals ask for a stop, and that none outlives its starter.

Standard library only, and little of it: it is loaded first, so that no signal comes too early.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# What the keyboard and schedulers ask a job to stop with; Slurm sends whatever `--signal` names.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

STARTER = "GEMCUTTER_STARTER"  # the variable that names the process which a child must not outlive

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def starter() -> dict[str, str]:
    """What the environment of a child says of this process."""
    return {STARTER: str(os.getpid())}


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

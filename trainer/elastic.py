"""`python -m trainer.elastic N train [overrides]`: N processes of a job on this machine, and one exit code that tells.

A thin layer over torch's elastic launcher, without its restarts: those give every failure the same treatment and the
same exit code 1, while a configuration error must never be tried again. Whoever called decides from the code.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from conf.exits import CONFIG, DATA, DIVERGED, DONE, HANG, STOPPED
from conf.processes import STOP_SIGNALS, deafen, end_with, starter

LAST_SECONDS = 5  # of processes whose peer has failed
# A cause before its consequences: when one process finds a fault, the others merely lose their peer.
SEVERITY = (CONFIG, DATA, DIVERGED, HANG, STOPPED)


def launch(processes: int, arguments: list[str]) -> int:
    """Run `python -m trainer <arguments>` in so many processes; returns the code of the most severe failure, or 0."""
    # Here, because it takes seconds in which a signal may come.
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Once one has failed, the launcher ends the others by SIGTERM, and 30 seconds later by SIGKILL: its configuration
    # has no say in that (torch 2.13). They take the first for a request to stop, and may be waiting for the one that
    # failed; one that stops ends after all have saved.
    close = PContext.close

    def close_soon(self: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        close(self, death_sig, min(timeout, LAST_SECONDS))

    PContext.close = close_soon  # type: ignore[method-assign]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    # The launcher would answer a signal by ending the children with it and losing their exit codes. A thread passes it
    # on, they save and say how they ended.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # read by torch 2.9
    config.signals_to_handle = "SIGQUIT"  # newer versions overwrite the variable with this
    threading.Thread(target=_forward, name="signals", daemon=True).start()
    os.environ |= starter()
    with tempfile.TemporaryDirectory(prefix="gemcutter-") as declared:
        os.environ["GEMCUTTER_EXIT_CODES"] = declared
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "trainer", *arguments)
        except ChildFailedError as error:
            codes = [int(path.read_text()) for path in Path(declared).iterdir()]
            return most_severe(codes + [failure.exitcode for failure in error.failures.values()])
    return DONE


def most_severe(codes: list[int]) -> int:
    """The code that names a cause, else a kill, else the first; a process that signal n ended gives 128 + n."""
    named = [code for code in SEVERITY if code in codes]
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]  # with SIGTERM the launcher ends the rest
    code = (named + killed + codes)[0]
    return code if code >= 0 else 128 - code


def _forward() -> None:
    """Pass on the signals that wait here, and in the children until they can answer them."""
    main_thread = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        number = signal.sigwait(STOP_SIGNALS)
        while not (children := main_thread.read_text().split()):  # one child that hears it is enough: they agree
            time.sleep(0.05)
        for child in children:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(int(child), number)


if __name__ == "__main__":
    deafen()  # for good: the thread takes what comes
    end_with()
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))

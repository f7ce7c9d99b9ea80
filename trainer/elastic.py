"""`python -m trainer.elastic N train [overrides]`: N processes of a job on this machine, and one exit code that tells.

With `--nodes` and `--rendezvous` in front it is one of several hosts, which each run this and meet there.

A thin layer over torch's elastic launcher, without its restarts: those give every failure the same treatment and the
same exit code 1, while a configuration error must never be tried again. Whoever called decides from the code. A single
process needs no such launcher, and is watched all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from conf.exits import CONFIG, DATA, DIVERGED, DONE, ERRORS, HANG, LOST, STOPPED, ConfigError, DataError
from conf.processes import deafen, end_with, speak_on, starter, stop_signals
from trainer.liveness.children import Children
from trainer.liveness.interfaces import address_towards, interface_of, is_here

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

LAST_SECONDS = 5  # of processes whose peer has failed
# A cause before its consequences: when one process finds a fault, the others merely lose their peer.
SEVERITY = (CONFIG, DATA, DIVERGED, HANG, STOPPED)

JOIN_SECONDS = 3600  # for which hosts wait for each other: a lost one may have to be rented anew
_LAST_CALL_SECONDS = 1  # that late hosts get beyond the number that was asked for; none is
_CONNECT_SECONDS = 1.0  # of one try to reach the rendezvous: the kernel's own tries grow apart while a link is cut


def launch(processes: int, arguments: list[str], nodes: int = 1, rendezvous: str | None = None) -> int:
    """Run `python -m trainer <arguments>` in so many processes here; returns the code of the most severe failure, or 0.

    Raises ConfigError where the other hosts do not come within `JOIN_SECONDS`, or cannot; DataError on a full disk.
    """
    os.environ |= starter()
    with _folder() as folder, Children(Path(folder), most_severe) as children:
        os.environ["GEMCUTTER_EXIT_CODES"] = folder
        threading.Thread(target=_forward, args=(children,), name="signals", daemon=True).start()
        if processes * nodes == 1:
            code = subprocess.Popen(_python(arguments)).wait()
            return DONE if code == DONE else most_severe([*children.codes(), code])
        return _launch_together(processes, arguments, nodes, rendezvous, children)


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Where the processes say how they end. Raises DataError where there is no room for it."""
    try:
        return tempfile.TemporaryDirectory(prefix="gemcutter-")
    except OSError as error:
        raise DataError(
            f"no folder for temporary files can be made ({error}): free space there, or name another place with the "
            "variable TMPDIR"
        ) from error


def _python(arguments: list[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "trainer", *arguments]


def _launch_together(
    processes: int, arguments: list[str], nodes: int, rendezvous: str | None, children: Children
) -> int:
    # Here, because it takes seconds in which a signal may come.
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousTimeoutError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Once one has failed, the launcher ends the others by SIGTERM, and 30 seconds later by SIGKILL: its configuration
    # has no say in that (torch 2.13). They take the first for a request to stop, and may be waiting for the one that
    # failed; one that stops ends after all have saved.
    close = PContext.close

    def close_soon(self: PContext, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        close(self, death_sig, min(timeout, LAST_SECONDS))

    PContext.close = close_soon  # type: ignore[method-assign]
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id=os.urandom(16).hex() if rendezvous is None else "gemcutter",
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous or "localhost:0",
        rdzv_configs={"last_call_timeout": _LAST_CALL_SECONDS},
        max_restarts=0,
        monitor_interval=0.1,
    )
    # The launcher would answer a signal by ending the children with it and losing their exit codes. A thread passes it
    # on, they save and say how they ended.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # read by torch 2.9
    config.signals_to_handle = "SIGQUIT"  # newer versions overwrite the variable with this
    _, *command = _python(arguments)
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            if rendezvous is not None:
                _meet(config, rendezvous, deadline)
            config.rdzv_configs["join_timeout"] = max(1, round(deadline - time.monotonic()))
            elastic_launch(config, sys.executable)(*command)
            return DONE
        except ChildFailedError as error:
            return most_severe(children.codes() + [failure.exitcode for failure in error.failures.values()])
        except (RendezvousError, TimeoutError) as error:
            if children.seen():  # another host ended, and with it the place where they met
                return most_severe([*children.codes(), LOST])
            if isinstance(error, RendezvousTimeoutError) or time.monotonic() > deadline:
                raise ConfigError(
                    f"the hosts of launch.nodes={nodes} did not all meet at launch.rendezvous={rendezvous} within "
                    f"{JOIN_SECONDS} s ({type(error).__name__}): give the same command on each of them, and see that "
                    "each reaches that address"
                ) from error
            # That was the rendezvous of the attempt before, which was just ending.
            time.sleep(_CONNECT_SECONDS / 4)


def _meet(config: LaunchConfig, rendezvous: str, deadline: float) -> None:
    """Wait until the rendezvous can be reached, and say to torch and Gloo by which address this host is known there.

    Raises TimeoutError where that is not before the deadline; ConfigError where no other host can reach it.
    """
    host, _, port = rendezvous.rpartition(":")
    while not (here := is_here(host)):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            break
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_CONNECT_SECONDS / 4)
    config.rdzv_configs["is_host"] = here
    config.local_addr = address_towards(host, int(port))
    if ip_address(config.local_addr).is_loopback:
        raise ConfigError(
            f"launch.rendezvous={rendezvous} leads this host to {config.local_addr}, its own loopback, where no other "
            "one meets it: use the address that the others know it by, or correct its name in /etc/hosts"
        )
    if name := interface_of(config.local_addr):  # Gloo would look up the host's name, which may be that of loopback
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def most_severe(codes: list[int]) -> int:
    """The code that names a cause, else a kill, else the first; a process that signal n ended gives 128 + n."""
    named = [code for code in SEVERITY if code in codes]
    killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]  # with SIGTERM the launcher ends the rest
    code = (named + killed + codes)[0]
    return code if code >= 0 else 128 - code


def _forward(children: Children) -> None:
    """Pass on the signals that wait here, and in the children until they can answer them. Without any, end."""
    main_thread = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        number = signal.sigwait(stop_signals())
        # Those that were there have ended, and the main thread is about to say how; but not where it waits for hosts.
        deadline = time.monotonic() + (LAST_SECONDS if children.seen() else 0)
        while not (pids := main_thread.read_text().split()):
            if time.monotonic() >= deadline:
                when = "while no process was at work" if children.seen() else "before anything was done"
                by = signal.Signals(number).name
                print(f"gemcutter train: stopped {when}, as asked by {by}", file=sys.stderr, flush=True)
                children.leave(STOPPED)
            time.sleep(0.05)
        for pid in pids:  # one child that hears it is enough: they agree
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(pid), number)


def main(words: list[str]) -> int:
    """Run the command line; returns its exit code. Stop signals must wait already."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--rendezvous")
    parser.add_argument("processes", type=int)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(words)
    try:
        return launch(given.processes, given.arguments, given.nodes, given.rendezvous)
    except ERRORS as refused:
        print(f"gemcutter train: {refused}", file=sys.stderr)
        return refused.code


if __name__ == "__main__":
    deafen()  # for good: the thread takes what comes
    end_with()
    speak_on()
    sys.exit(main(sys.argv[1:]))

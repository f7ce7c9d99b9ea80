"""Several hosts on this machine: network namespaces on one bridge, whose links can be cut. Needs root and `ip`.

Each has an address, a name of its own, its processes, and the same disk. What hosts meet when a host is lost can so be
tried with real sockets: a cut link says nothing to anybody, as a dead host does not.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.trainer.conftest import SMALL, Corpus, documents, environment, make_corpus, read_lines

PORT = 29400
TIMEOUT = 10.0  # seconds without progress after which a process counts as hung
BAR = 10.0  # seconds after that to the next step
_NUMBERS = itertools.count()


def missing() -> str | None:
    """Why hosts cannot be made here; None where they can. As root, the package of `ip` is installed where it lacks."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        subprocess.run(["apt-get", "install", "-y", "-q", "iproute2"], capture_output=True, check=False)
    if shutil.which("ip") is None:
        return "there is no `ip` (package iproute2)"
    name = f"gem{os.getpid()}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"no network namespace can be made: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One namespace, joined to the switch by a link."""

    def __init__(self, switch: str, number: int) -> None:
        self.number, self.address = number, f"10.77.0.{number}"
        self.name, self._switch, self._port = f"{switch}-h{number}", switch, f"p{number}"
        self.started: list[subprocess.Popen[bytes]] = []
        _ip("netns", "add", self.name)
        ends = (f"v{number}", "netns", self.name, "type", "veth", "peer", "name", self._port, "netns", switch)
        _ip("link", "add", *ends)
        _ip("-n", self.name, "link", "set", f"v{number}", "name", "eth0")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "eth0", "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "set", self._port, "master", "br0")
        self.join()

    def join(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def start(self, command: list[str], folder: Path, surroundings: dict[str, str]) -> subprocess.Popen[bytes]:
        """Run a command there, under the host's own name; what it says goes to `<folder>/host-<number>.log`."""
        as_host = f'hostname host-{self.number}; exec "$@"'
        enter = ["ip", "netns", "exec", self.name, "unshare", "--uts", "bash", "-c", as_host, "_"]
        with (folder / f"host-{self.number}.log").open("ab") as log:
            process = subprocess.Popen(
                [*enter, *command], cwd=folder, env=surroundings, stdout=log, stderr=log, start_new_session=True
            )
        self.started.append(process)
        return process

    def pids(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]

    def rank(self) -> int:
        """The process id of the training process there, of which there is one."""
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if b"trainer" in words:
                        return pid
        raise AssertionError(f"no training process on host {self.number}")

    def kill(self) -> None:
        """As when the power fails: nobody is told, and no process says goodbye."""
        self.cut()
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()


@contextmanager
def switch() -> Iterator[Callable[[int], Host]]:
    """A bridge; gives what makes hosts on it. All of them, and what runs there, end with it."""
    name = f"gem{os.getpid()}-{next(_NUMBERS)}"
    hosts: list[Host] = []

    def host(number: int) -> Host:
        hosts.append(Host(name, number))
        return hosts[-1]

    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "add", "br0", "type", "bridge")
        _ip("-n", name, "link", "set", "br0", "up")
        yield host
    finally:
        for each in hosts:
            each.kill()
            _ip("netns", "del", each.name)
        _ip("netns", "del", name)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Training:
    """A run of two processes on two hosts, started there by the command that a user gives."""

    def __init__(self, folder: Path, corpus: Corpus, timeout: float) -> None:
        self.folder, self.run, self.timeout = folder, folder / "runs" / "hosts", timeout
        keys = [
            *SMALL, *corpus.overrides, "run_id=hosts", "mesh.fsdp=2", "launch.nodes=2",
            f"launch.rendezvous=10.77.0.1:{PORT}", f"hang.seconds={timeout}", "steps=100000", "checkpoint.every=20",
        ]  # fmt: skip
        self.command = [sys.executable, "-P", "-m", "launch", "train", *keys]
        self.surroundings = environment(folder)

    def start(self, host: Host) -> subprocess.Popen[bytes]:
        return host.start(self.command, self.folder, self.surroundings)

    def lines(self) -> list[dict[str, Any]]:
        return [line for line in read_lines(self.run / "metrics.jsonl") if "loss" in line]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.run / "events.jsonl") if event["event"] in kinds]

    def said(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("host-*.log")))

    def until(self, happened: Callable[[], Any], what: str, seconds: float = 90) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := happened()):
            assert time.monotonic() < deadline, f"{seconds:.0f} s without {what}:\n{self.said()}"
            time.sleep(0.05)
        return result

    def until_step(self, step: int, attempt: int = 1) -> float:
        """Wait until an attempt has done a step; returns the time at which that was written down."""
        line = self.until(
            lambda: next((x for x in self.lines() if x["attempt"] >= attempt and x["step"] >= step), None),
            f"step {step} of attempt {attempt}",
        )
        return float(line["time"])


def blamed(event: dict[str, Any]) -> dict[str, Any]:
    """Whom the ledger names, and why."""
    return {key: event[key] for key in ("event", "ranks", "host", "why")}


def scenario_stopped_rank(folder: Path, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The process of one host is stopped by SIGSTOP."""
    with scene(folder, timeout) as (training, second, _):
        began = time.time()
        os.kill(second.rank(), signal.SIGSTOP)
        return recovered(training, began, began)


def scenario_cut_link(folder: Path, timeout: float = TIMEOUT, seconds: float = 20.0) -> dict[str, Any]:
    """The link of a host is cut, and healed later."""
    with scene(folder, timeout) as (training, second, _):
        began = time.time()
        second.cut()
        time.sleep(seconds)  # that is what happens
        second.join()
        return recovered(training, began, time.time())


def scenario_replaced_host(folder: Path, timeout: float = TIMEOUT) -> dict[str, Any]:
    """A host dies with all its processes, and another one takes its place."""
    with scene(folder, timeout) as (training, second, make):
        began = time.time()
        second.kill()
        training.start(make(3))
        return recovered(training, began, began)


SCENARIOS = {
    "rank stopped": scenario_stopped_rank,
    "link cut for 20 s": scenario_cut_link,
    "host replaced": scenario_replaced_host,
}


def scenario_hosts(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """Rows of all scenarios: seconds until training goes on, held against the time-out and `BAR` seconds more."""
    if why := missing():
        raise RuntimeError(why)
    rows = []
    for name, scenario in SCENARIOS.items():
        (place := folder / name.replace(" ", "-")).mkdir()
        found = scenario(place)
        named = found["named"]["host"] == "host-2" and found["events"] == 1
        rows.append(
            {
                "figure": f"two hosts, {name}: seconds until training goes on",
                "ours": found["recovered_seconds"],
                "bar": found["bar_seconds"],
                "met": found["met"] and named,
                **{key: found[key] for key in ("detected_seconds", "named", "events", "restarts")},
            }
        )
    return rows


@contextmanager
def scene(folder: Path, timeout: float) -> Iterator[tuple[Training, Host, Callable[[int], Host]]]:
    """A run that two hosts train, the second of them, and what makes another."""
    corpus = make_corpus(folder / "corpus", documents(150), 480)
    with switch() as make:
        training, (first, second) = Training(folder, corpus, timeout), (make(1), make(2))
        training.start(first)
        training.start(second)
        training.until_step(8)
        yield training, second, make


def recovered(training: Training, began: float, possible: float) -> dict[str, Any]:
    """What was measured, once the run goes on: seconds from the fault to its event, and from the moment at which a step
    was possible again to the first one."""
    again = training.until_step(1, attempt=2)
    (event, *more) = training.events("hang", "lost")
    return {
        "detected_seconds": round(event["time"] - began, 2),
        "recovered_seconds": round(again - possible, 2),
        "bar_seconds": training.timeout + BAR,
        "met": again - possible <= training.timeout + BAR,
        "named": blamed(event),
        "events": 1 + len(more),
        "restarts": [(x["host"], x["code"], x["failure"]) for x in training.events("restart")],
        "attempts": max(line["attempt"] for line in training.lines()),
        "said": training.said(),
    }

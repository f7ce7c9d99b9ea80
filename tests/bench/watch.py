"""A command and every process below it, watched from outside: time, processor time and memory.

Processes are looked at ten times a second in /proc. The peak of each is the kernel's own (VmHWM: plain resident memory,
in which pages of files count that several processes share), so nothing is missed but what a process takes in its last
tenth of a second; the same holds for processor time. Memory and processor time within some seconds are as they were
seen, so what comes and goes between two looks is not in them.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conf.processes import starter
from tests.bench.loader import ROOT, Failed

_LOOK_SECONDS = 0.1
_PAGE, _TICK = os.sysconf("SC_PAGE_SIZE"), 1 / os.sysconf("SC_CLK_TCK")
_ROLES = {"data_pipeline.extract.child": "extraction", "multiprocessing.spawn": "worker"}


@dataclass
class Process:
    """What was seen of one: when (CLOCK_MONOTONIC), processor seconds and resident bytes until then and then.

    role   driver (the command itself), worker, extraction or other
    """

    role: str
    peak_bytes: int = 0
    seen: list[tuple[float, float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Watched:
    """What a command printed, when it began and ended, and its processes."""

    output: str
    begin: float
    end: float
    processes: list[Process]

    def cpu_seconds(self, begin: float = 0.0, end: float = float("inf")) -> float:
        """Of all processes, between two moments."""
        return sum(_cpu_at(one, end) - _cpu_at(one, begin) for one in self.processes)

    def peaks(self) -> dict[str, int]:
        """The most resident bytes of a process of each role."""
        most: defaultdict[str, int] = defaultdict(int)
        for one in self.processes:
            most[one.role] = max(most[one.role], one.peak_bytes)
        return dict(most)

    def most_bytes(self, role: str, begin: float, end: float) -> int:
        """The most that a process of a role was seen with between two moments."""
        seen = (one.seen for one in self.processes if one.role == role)
        return max((size for of_one in seen for at, _, size in of_one if begin <= at <= end), default=0)


def watch(command: Sequence[str], log: Path) -> Watched:
    """Run a command in the root of the repository; what it complains of goes to the log.

    Raises Failed with the end of that where it fails.
    """
    processes: dict[tuple[int, str], Process] = {}
    begin = time.monotonic()
    with log.open("w+") as complaints, log.with_suffix(".out").open("w+") as output:
        root = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | starter(), stdin=subprocess.DEVNULL, stdout=output, stderr=complaints
        )
        try:
            while root.poll() is None:
                _look(root.pid, processes)
                time.sleep(_LOOK_SECONDS)
            end = time.monotonic()
        finally:
            root.kill()
            root.wait()
        output.seek(0)
        if root.returncode:
            complaints.seek(0)
            last = [line for line in complaints if line.strip()][-1:]
            raise Failed(f"exit code {root.returncode}: {''.join(last).strip()}")
        return Watched(output.read(), begin, end, list(processes.values()))


def _look(root: int, processes: dict[tuple[int, str], Process]) -> None:
    """Note what each process below, and this one, has now."""
    found: dict[int, list[str]] = {}
    below: defaultdict[str, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdecimal() and (stat := _read(f"/proc/{name}/stat")):
            fields = stat.rpartition(")")[2].split()  # from the third on: a name may hold blanks
            found[int(name)] = fields
            below[fields[1]].append(int(name))
    line = [root] if root in found else []
    for pid in line:
        line += below[str(pid)]
        command = _read(f"/proc/{pid}/cmdline")
        role = "driver" if pid == root else next((role for part, role in _ROLES.items() if part in command), "other")
        if role == "other" and command == _read(f"/proc/{root}/cmdline"):
            continue  # a fork that has not loaded its own program yet
        peaks = [row.split()[1] for row in _read(f"/proc/{pid}/status").splitlines() if row.startswith("VmHWM")]
        if not peaks:  # it has ended
            continue
        # Numbers come again, and what is forked has the memory and the command of who forked it until it loads its own.
        one = processes.setdefault((pid, command), Process(role))
        one.peak_bytes = int(peaks[0]) * 1024
        cpu = (int(found[pid][11]) + int(found[pid][12])) * _TICK
        one.seen.append((time.monotonic(), cpu, int(found[pid][21]) * _PAGE))


def _read(path: str) -> str:
    """What is in a file of /proc, "" where the process is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _cpu_at(one: Process, moment: float) -> float:
    return max((cpu for at, cpu, _ in one.seen if at <= moment), default=0.0)

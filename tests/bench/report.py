"""What a benchmark hands in: runs/bench/NAME.json, and the ratios as a table.

    name      of the benchmark
    commit    that was measured, with `-dirty` where files were changed
    machine   processor, cores, memory
    versions  of Python, of our libraries and of the peers
    work      what was done
    rows      figure, ours, peers by name, ratio, bar, met
    details   of each contestant, whatever the benchmark tells beyond the figures
    errors    of contestants that could not be measured, by name: they are missing from the rows

A ratio above 1 says that we are better than the best of the peers; the bar is the ratio that was aimed at.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES = ("numpy", "torch")


@dataclass(frozen=True)
class Row:
    """One figure, ours beside that of each peer."""

    figure: str
    ours: float | None  # None where it could not be measured
    peers: dict[str, float]
    ratio: float | None
    bar: float | None  # None where none was set
    met: bool | None


def compare(
    figure: str, ours: float | None, peers: dict[str, float], bar: float | None = None, *, lower_is_better: bool = False
) -> Row:
    """A row, with the ratio to the best of the peers."""
    ratio = None
    if ours is not None and peers:
        ratio = min(peers.values()) / ours if lower_is_better else ours / max(peers.values())
    met = None if ratio is None or bar is None else ratio >= bar
    return Row(figure, ours, peers, ratio, bar, met)


@dataclass
class Report:
    """What one benchmark found."""

    name: str
    work: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # of peers
    details: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the JSON file into a folder; returns its path."""
        own = {"python": platform.python_version()}
        own |= {name: importlib.metadata.version(name) for name in _LIBRARIES}
        content = {
            "name": self.name,
            "commit": commit(),
            "machine": _machine(),
            "versions": own | self.versions,
            "work": self.work,
            "rows": [asdict(row) for row in self.rows],
            "details": self.details,
            "errors": self.errors,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path

    def show(self, console: Console) -> None:
        """Print the rows, a line for each peer, and what went wrong."""
        from rich.table import Table  # here, as a report is also written where nothing but torch is

        table = Table(title=f"bench {self.name}", title_justify="left")
        for heading in ("figure", "contestant"):
            table.add_column(heading, no_wrap=True)
        for heading in ("value", "ours / peer", "bar"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            bar = "" if row.bar is None else f"{row.bar:g} {_VERDICTS[row.met]}"
            table.add_row(row.figure, "ours", _number(row.ours), "", bar)
            for peer, value in sorted(row.peers.items(), key=lambda item: item[1]):
                share = "" if row.ours is None else f"{row.ours / value:.2f}"
                table.add_row("", peer, _number(value), share, "")
            table.add_section()
        console.print(table)
        for name, error in self.errors.items():
            console.print(f"not measured: {name}: {error}", style="red", markup=False)


_VERDICTS = {True: "met", False: "missed", None: "open"}


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


def commit() -> str:
    """The commit that is measured, with `-dirty` where files were changed."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _machine() -> dict[str, Any]:
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    kib = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(kib[0] / 2**20, 1) if kib else None,
    }


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []

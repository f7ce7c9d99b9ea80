"""`python -m tests.chaos [NAME ...]`: put faults into real runs, all scenarios without a name; see `make chaos`.

Writes runs/chaos/summary.json, in the form of the benchmarks' reports. The exit code is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.report import Report, Row
from tests.chaos import SEED
from tests.chaos.hosts import scenario_hosts
from tests.chaos.integrity import scenario_bit_flip
from tests.chaos.kills import scenario_kills
from tests.chaos.restart import scenario_restart
from tests.chaos.saving import scenario_saving
from tests.chaos.stops import scenario_stops
from tests.chaos.storage import scenario_storage
from tests.chaos.wandb import scenario_tracker

RUNS = Path("runs/chaos")
SCENARIOS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "kills": scenario_kills,
    "stops": scenario_stops,
    "hosts": scenario_hosts,
    "storage": scenario_storage,
    "saving": scenario_saving,
    "restart": scenario_restart,
    "tracker": scenario_tracker,
    "integrity": scenario_bit_flip,
}


def main() -> int:
    """Run what the command line names, one after another."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}; all without one")
    names = parser.parse_args().names or list(SCENARIOS)
    if unknown := sorted(set(names) - set(SCENARIOS)):
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    console = Console()
    report = Report("summary", {"scenarios": names, "seed": SEED})
    for name in names:
        console.print(f"chaos {name} ...")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"gemcutter-chaos-{name}-") as folder:
            try:
                for row in SCENARIOS[name](Path(folder)):
                    add(report, row)
            except Exception as error:  # noqa: BLE001  # one that breaks is a finding, and the others have theirs
                traceback.print_exc()
                report.errors[name] = f"{type(error).__name__}: {error}"
        report.details.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
    path = report.write(RUNS)
    show(report, console)
    console.print(f"written to {path}")
    return int(bool(report.errors) or any(row.met is False for row in report.rows))


def add(report: Report, row: dict[str, Any]) -> None:
    """Put a row into the report; what it tells beyond figure, ours, bar and met goes among the details."""
    told = {name: value for name, value in row.items() if name not in ("figure", "ours", "bar", "met")}
    report.rows.append(Row(row["figure"], row["ours"], {}, None, row["bar"], row["met"]))
    if told:
        report.details[row["figure"]] = told


def show(report: Report, console: Console) -> None:
    """The rows, and what broke."""
    table = Table("figure", "ours", "bar", "", title=f"chaos {report.work['seed']}", title_justify="left")
    for row in report.rows:
        ours, bar = ("" if value is None else f"{value:.4g}" for value in (row.ours, row.bar))
        table.add_row(row.figure, ours, bar, {True: "met", False: "[red]missed[/]", None: ""}[row.met])
    console.print(table)
    for name, error in report.errors.items():
        console.print(f"{name} broke: {error}", style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())

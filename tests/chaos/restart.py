"""From a restart to the first step, as `python -m tests.bench restart` measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.report import Report
from tests.bench.restart import BAR, REPEATS, measure


def scenario_restart(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """The time to the first step, over that of a process that only starts and imports what training imports."""
    report = Report("restart", {})
    measure(folder, 1 if short else REPEATS, report)
    return [row_of(report)]


def row_of(report: Report) -> dict[str, Any]:
    """The first row of the benchmark's report with a bar that is not to be passed, as that of other scenarios."""
    row = report.rows[0]
    assert row.ratio is not None
    return {
        "figure": "seconds from a restart to its first step, over process start and imports",
        "ours": 1 / row.ratio,
        "bar": BAR,
        "met": row.met,
        "seconds": row.ours,
        "of which": row.peers,
        **report.details,
    }

"""`gemcutter status`: every run at a glance, or one with where its time went and what went wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from conf.exits import DONE, DataError
from trainer.arguments import Arguments
from trainer.run_directory import existing_run
from trainer.status.recorded import Status, read_status
from trainer.status.show import show_all, show_one


def status(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = Arguments(prog="gemcutter status", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", nargs="?", help="run id or run directory (default: all below runs/)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each run")
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 80)
    if chosen.run is not None:
        run = read_status(existing_run(chosen.run))
        print(json.dumps(_plain(run))) if chosen.json else show_one(console, run)
        return DONE
    runs = []
    for path in sorted({config.parent for config in Path("runs").glob("*/config.yaml")}):
        try:
            runs.append(read_status(path))
        except DataError as error:  # one broken run must not hide the others
            print(f"gemcutter status: {error}", file=sys.stderr)
    if chosen.json:
        for run in runs:
            print(json.dumps(_plain(run)))
    elif runs:
        show_all(console, runs)
    else:
        print("there are no runs below runs/ here: `gemcutter train` makes one")
    return DONE


def _plain(run: Status) -> dict[str, Any]:
    return dataclasses.asdict(run) | {
        "seconds": run.ledger.seconds,
        "wall_seconds": run.ledger.wall,
        "goodput": run.ledger.goodput,
    }

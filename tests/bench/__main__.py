"""`python -m tests.bench [NAME ...] [options]`: run benchmarks, all without a name; see `make bench`.

Options that are not known here are those of the benchmark. A benchmark writes runs/bench/NAME.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import dropwhile
from pathlib import Path

from rich.console import Console

from tests.bench import classify, curate, decontamination, dedup, loader, order, plan, private, restart, train
from tests.bench.report import Report

RUNS = Path("runs/bench")
BENCHES: dict[str, Callable[[Path, Sequence[str]], Report]] = {
    "classify": classify.bench,
    "curate": curate.bench,
    "decontamination": decontamination.bench,
    "dedup": dedup.bench,
    "loader": loader.bench,
    "order": order.bench,
    "plan": plan.bench,
    "private": private.bench,
    "restart": restart.bench,
    "train": train.bench,
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all without one")
    parser.add_argument("options", nargs="*", metavar="--option", help="of the benchmark: see NAME --help")
    arguments = sys.argv[1:]
    options = list(dropwhile(lambda argument: not argument.startswith("-"), arguments))
    names = arguments[: len(arguments) - len(options)]
    if not names and {"-h", "--help"} & set(options):
        parser.print_help()
        return
    if unknown := sorted(set(names) - set(BENCHES)):
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    console = Console()
    for name in names or BENCHES:
        report = BENCHES[name](RUNS, options)
        path = report.write(RUNS)
        report.show(console)
        console.print(f"written to {path}")


if __name__ == "__main__":
    main()

"""Rounds of contestants: each is a process of its own on one and the same core, and prints one line of JSON.

Rounds are interleaved and every round begins with another contestant, so that what else the machine does strikes all
alike.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from tests.bench.loader import ONE_THREAD, Contestant, Failed, one_core, run_python, version_of
from tests.bench.report import Report


def add_part(parser: argparse.ArgumentParser, parts: Iterable[str]) -> None:
    """The option that chooses parts of a benchmark: `part` is a list of them, or None for all."""
    parser.add_argument("--part", action="append", choices=[*parts], help="one of the parts; all without")


def interleaved(
    contestants: Sequence[tuple[Contestant, Sequence[str]]], rounds: int, report: Report
) -> dict[str, list[dict[str, Any]]]:
    """What each contestant, given its arguments, prints in each round, by its label.

    Versions, and errors of those that break, go to the report; who broke once is left out of the result.
    """
    console = Console(stderr=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        start = number % len(contestants)
        for contestant, arguments in (*contestants[start:], *contestants[:start]):
            if contestant.label in report.errors:
                continue
            try:
                if contestant.package and contestant.package not in report.versions:
                    report.versions[contestant.package] = version_of(contestant)
                result = once(contestant, arguments)
            except Failed as error:
                report.errors[contestant.label] = str(error)
                found.pop(contestant.label, None)
                continue
            found.setdefault(contestant.label, []).append(result)
            console.print(f"round {number + 1}: {contestant.label}: {result}", markup=False)
    return found


def once(contestant: Contestant, arguments: Sequence[str]) -> dict[str, Any]:
    """What a contestant prints. Raises Failed where it breaks."""
    with one_core(max(os.sched_getaffinity(0))):
        output = run_python(contestant.python, ["-m", contestant.module, *arguments], ONE_THREAD)
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result

"""Promises of a coordinated stop, in the short form of `make chaos NAME=stops`."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.stops import scenario_stops


def test_whoever_is_signalled_every_process_ends_with_75_at_one_step_and_none_is_lost(tmp_path: Path) -> None:
    rows = scenario_stops(tmp_path, short=True)
    required = [row for row in rows if "during" not in row["figure"]]  # when exactly a signal hits is a matter of luck
    assert all(row["met"] is not False for row in required), rows

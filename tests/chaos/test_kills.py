"""Promises of a restart, in the short form of `make chaos NAME=kills`."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.kills import scenario_kills


def test_a_killed_run_goes_on_from_its_newest_commit_and_ends_as_the_undisturbed(tmp_path: Path) -> None:
    """And nothing of it is left, whoever was killed: a rank, all ranks, a launcher."""
    rows = scenario_kills(tmp_path, short=True)
    required = [row for row in rows if "during" not in row["figure"]]  # when exactly a kill hits is a matter of luck
    assert all(row["met"] is not False for row in required), rows

"""Promises of the scenarios of storage and of restarts: what they find wrong is a figure that is missed.

Their faults themselves are in tests/trainer/test_checkpoint_faults.py, and in `make bench NAME=restart`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.bench.report import Report, compare
from tests.bench.restart import BAR
from tests.chaos.restart import row_of
from tests.chaos.storage import row_of_deaths, scenario_storage
from trainer import checkpoint


def test_a_mixed_state_is_a_figure_that_is_missed() -> None:
    def mixed() -> Iterator[int]:
        yield 1
        raise AssertionError("a is a mixture")

    row = row_of_deaths("a call", [iter([1, 1, 2])])
    assert (row["ours"], row["met"], row["deaths"]) == (0, True, 3)
    row = row_of_deaths("a call", [iter([1, 2]), mixed()])
    assert (row["ours"], row["met"], row["wrong"]) == (1, False, ["AssertionError: a is a mixture"])
    assert row_of_deaths("a call", [iter([1, 2, 1])])["met"] is False  # a commit was lost


def test_damage_that_nobody_finds_is_a_figure_that_is_missed(tmp_path: Path, monkeypatch) -> None:
    def rows() -> dict[str, dict]:
        found = scenario_storage(tmp_path / str(len(list(tmp_path.iterdir()))), short=True)
        return {row["figure"]: row for row in found}

    assert all(row["met"] for row in rows().values())
    # Readers that do not look at bytes, but for how many they are.
    monkeypatch.setattr(
        checkpoint.Committed,
        "fault",
        lambda self, name: 0 if self.payload.size(name) == self.files[name]["bytes"] else 2,
    )
    assert rows()["silent loads of a damaged checkpoint"]["met"] is False


def test_a_restart_is_held_against_the_bar_of_its_benchmark() -> None:
    for seconds, met in ((5.0, True), (5.3, False)):
        report = Report("restart", {}, details={"parts": {"load": 0.1}})
        peers = {"process start and imports": 4.0}
        report.rows.append(compare("seconds to the first step", seconds, peers, 1 / BAR, lower_is_better=True))
        row = row_of(report)
        assert (round(row["ours"], 3), row["bar"], row["met"]) == (seconds / 4, BAR, met)
        assert row["parts"] == {"load": 0.1}

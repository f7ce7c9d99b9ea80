"""The benchmark of plans: figures are held against their bars, and a case that cannot be planned is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import plan


def test_small_figures_are_better() -> None:
    row = plan.held("GiB", 2.0, 5.5, {"one": 6.0, "other": 9.0})
    assert (row.ratio, row.bar, row.met) == (3.0, 5.5, True)
    assert plan.held("GiB", 6.0, 5.5, {"one": 6.0}).met is False
    assert plan.held("GiB", 6.0, None, {}).met is None


def test_without_the_environment_for_tpus_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    report = plan.bench(tmp_path, ["--quick"])
    assert report.rows == []
    assert report.errors == {plan.QUICK.name: "there is no .venv-tpu: run make setup-tpu"}

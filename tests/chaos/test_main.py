"""Promises of `make chaos`: all findings stand in one report, and the command fails where one of them is bad."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import __main__ as chaos


def good(folder: Path) -> list[dict[str, Any]]:
    (folder / "file").touch()  # a folder of its own
    return [{"figure": "found", "ours": 3, "bar": 3, "met": True, "seed": 7}]


def bad(folder: Path) -> list[dict[str, Any]]:
    return [{"figure": "lost", "ours": 1, "bar": 0, "met": False}]


def broken(folder: Path) -> list[dict[str, Any]]:
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("names", "code", "figures", "errors"),
    [
        (["good"], 0, ["found"], {}),
        (["good", "bad"], 1, ["found", "lost"], {}),
        (["broken", "good"], 1, ["found"], {"broken": "AssertionError: it never ended"}),
        ([], 1, ["found", "lost"], {"broken": "AssertionError: it never ended"}),
    ],
)
def test_a_report_holds_what_every_scenario_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str], code: int, figures: list[str], errors: dict
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chaos, "SCENARIOS", {"good": good, "bad": bad, "broken": broken})
    monkeypatch.setattr(sys, "argv", ["chaos", *names])
    assert chaos.main() == code
    report = json.loads((tmp_path / "runs" / "chaos" / "summary.json").read_text())
    assert [row["figure"] for row in report["rows"]] == figures
    assert {name: report["rows"][0][name] for name in ("ours", "bar", "met")} == {"ours": 3, "bar": 3, "met": True}
    assert report["errors"] == errors
    assert report["details"]["found"] == {"seed": 7}
    assert set(report) >= {"commit", "machine", "versions", "work"}


def test_a_name_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["chaos", "kils"])
    with pytest.raises(SystemExit):
        chaos.main()
    assert "there is no scenario kils; there are kills" in capsys.readouterr().err

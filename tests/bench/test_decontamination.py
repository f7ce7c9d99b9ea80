"""The benchmark of decontamination: a peer that is not there is an error, and our figures stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_pipeline.decontaminate.items import Evaluation, Item
from tests.bench import decontamination
from tests.bench.loader import own_environment
from tests.bench.report import Report


def test_a_missing_peer_is_an_error(tmp_path: Path) -> None:
    item = Item("b", "0", ("Who counted the barrels that came up the river?",), ("the miller",))
    missing = dataclasses.replace(decontamination.DATATROVE, python=own_environment("no-such-peer"))
    report = Report("decontamination", {})
    planted = [("b", "verbatim", "0", item.forms[0])]
    halves = [(Evaluation("b", {}, [item], ""), list[Item]())]
    assert decontamination.datatrove(missing, halves, planted, np.ones(1, bool), tmp_path, report) == []
    assert list(report.errors) == ["datatrove"]
    assert "make setup-bench" in report.errors["datatrove"]

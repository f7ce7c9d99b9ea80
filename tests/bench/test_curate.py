"""The benchmark of curation: contestants answer with what they did, and one that is not there is an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.bench import curate
from tests.bench.loader import own_environment
from tests.bench.report import Report
from tests.bench.rounds import interleaved

TEXTS = ["The old mill stands by the river, and people of the village come to have their grain ground.\n" * 3, "short"]


def test_contestants_answer_and_one_that_is_missing_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    missing = dataclasses.replace(curate.DATATROVE, python=own_environment("no-such-peer"))
    report = Report("curate", {})
    found = interleaved([(one, ["read", str(file), "0"]) for one in (curate.OURS, missing)], 2, report)
    assert list(found) == ["ours"]
    assert list(report.errors) == ["datatrove"]
    assert "make setup-bench" in report.errors["datatrove"]
    for result in found["ours"]:
        assert (result["characters"], result["dropped"]) == (sum(map(len, TEXTS)), 2)
        assert result["seconds"] > 0

"""The benchmark of classification: a contestant answers with its figures, and one that is not there is an error."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest

from tests.bench import classify
from tests.bench.loader import own_environment
from tests.bench.report import Report
from tests.bench.rounds import interleaved


def test_contestants_answer_and_one_that_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    for name, count in (("training", 200), ("calibration", 60), ("held_out", 60)):
        rows = [
            {
                "text": " ".join(rng.choices(("good", "fine") if number % 2 else ("bad", "poor"), k=9)),
                "positive": bool(number % 2),
            }
            for number in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    missing = [dataclasses.replace(peer, python=own_environment("no-such-peer")) for peer in classify.PEERS]
    monkeypatch.setattr(classify, "PEERS", missing)
    report = Report("classify", {})
    found = interleaved(classify.contestants(tmp_path), 1, report)
    assert list(found) == ["ours"]
    assert sorted(report.errors) == ["fasttext 25 epochs", "fasttext 5 epochs"]
    result = found["ours"][0]
    assert (result["accuracy"], result["auc"]) == (1.0, 1.0)
    assert result["training_seconds"] > 0
    assert result["characters_per_second"] > 0

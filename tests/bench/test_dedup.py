"""The benchmark of near-duplicates: our side runs on a few documents, and recall counts pairs of which one goes."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipeline.duplicates.survivors import REMOVED
from tests.bench import dedup
from tests.bench.loader import own_environment
from tests.data_pipeline.duplicates_tasks import planted, sentence


def test_our_side_keeps_one_of_two_similar_documents(tmp_path: Path) -> None:
    words = [f"word{'abcdefghijklmnopqrstuvwxyz'[n % 26]}{chr(97 + n // 26)}" for n in range(300)]
    other = [*words[:150], "another", *words[151:]]
    lines = [json.dumps({"text": " ".join(text)}).encode() + b"\n" for text in (words, other, words[::-1])]
    assert dedup.write_documents(tmp_path / "documents", iter(lines)) == 1
    result = dedup._ours(tmp_path / "documents", tmp_path / "out", 14, 8, 2**20)
    assert (result["documents"], result["removed"]) == (3, 1)
    kept = (tmp_path / "out" / "filter" / "000000" / "kept.jsonl").read_bytes()
    assert kept == lines[1] + lines[2]  # the longer one


def test_no_pairs_are_no_share() -> None:
    row = dedup.of_pairs("recall", **dedup.recall(np.empty((0, 5)), np.zeros(0, REMOVED))["of 0.8 and more"])
    assert (row.ours, row.met) == (None, None)
    assert dedup.of_pairs("recall", pairs=2, found=1).ours == 0.5


def test_parts_write_where_they_are_told_and_a_missing_peer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "text").mkdir(parents=True)
    (corpus / "manifest.json").write_text("{}")
    words = " ".join(sentence(random.Random(1), 200))
    texts = [{"id": str(n), "source": "a", "text": words + end, "lang_hint": ""} for n, end in enumerate(("", " end"))]
    packed = zstandard.compress("".join(json.dumps(text) + "\n" for text in texts).encode())
    (corpus / "text" / "a.jsonl.zst").write_bytes(packed)
    monkeypatch.setenv("GEMCUTTER_CORPUS", str(corpus))
    monkeypatch.setattr(dedup, "DATATROVE", dataclasses.replace(dedup.DATATROVE, python=own_environment("no-peer")))
    report = dedup.bench(tmp_path / "runs", ["--part", "speed", "--packages", "a", "--rounds", "1"])
    assert list(report.errors) == ["datatrove"]
    assert [row.figure for row in report.rows if row.ours] == [
        f"characters/{unit}, {bands} x {rows}"
        for unit in ("s", "s of processors") for bands, rows in (dedup.FINEWEB, dedup.OURS)
    ]  # fmt: skip
    assert [report.details[f"ours {bands} x {rows}"][0]["removed"] for bands, rows in (dedup.FINEWEB, dedup.OURS)] == [
        1,
        1,
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dedup, "planted", lambda draw, count, low, high: planted(draw, 4, low, high))
    monkeypatch.setattr(dedup, "probabilities", dict)
    dedup.bench(tmp_path / "runs", ["--part", "planted"])
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "runs"}


def test_a_pair_is_found_where_one_of_it_goes() -> None:
    pairs = np.array([[0, 1, 0, 2, 0.9], [0, 1, 1, 3, 0.8], [0, 3, 1, 4, 0.95], [0, 1, 0, 5, 0.7]])
    removed = np.zeros(2, REMOVED)
    removed["key"] = [1, (1 << 32) + 9]
    found = dedup.recall(pairs, removed)
    assert found["of 0.8 and more"] == {"pairs": 3, "found": 2}
    assert found["of less"] == {"pairs": 1, "found": 1}

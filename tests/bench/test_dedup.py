"""The benchmark of near-duplicates: our side runs on a few documents, and recall counts pairs of which one goes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data_pipeline.duplicates.survivors import REMOVED
from tests.bench import dedup


def test_our_side_keeps_one_of_two_similar_documents(tmp_path: Path) -> None:
    words = [f"word{'abcdefghijklmnopqrstuvwxyz'[n % 26]}{chr(97 + n // 26)}" for n in range(300)]
    other = [*words[:150], "another", *words[151:]]
    lines = [json.dumps({"text": " ".join(text)}).encode() + b"\n" for text in (words, other, words[::-1])]
    assert dedup.write_documents(tmp_path / "documents", iter(lines)) == 1
    result = dedup._ours(tmp_path / "documents", tmp_path / "out", 14, 8, 2**20)
    assert (result["documents"], result["removed"]) == (3, 1)
    kept = (tmp_path / "out" / "filter" / "000000" / "kept.jsonl").read_bytes()
    assert kept == lines[1] + lines[2]  # the longer one


def test_a_pair_is_found_where_one_of_it_goes() -> None:
    pairs = np.array([[0, 1, 0, 2, 0.9], [0, 1, 1, 3, 0.8], [0, 3, 1, 4, 0.95], [0, 1, 0, 5, 0.7]])
    removed = np.zeros(2, REMOVED)
    removed["key"] = [1, (1 << 32) + 9]
    found = dedup.recall(pairs, removed)
    assert found["of 0.8 and more"] == {"pairs": 3, "found": 2}
    assert found["of less"] == {"pairs": 1, "found": 1}

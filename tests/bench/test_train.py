"""The benchmark of training: its processes answer, one that ends is an error, and figures say what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench import train
from tests.bench.loader import Failed
from tests.bench.peers import training

_MATRICES = 6 * (  # FLOPs per token: per layer queries, output, keys, values and three of the feed-forward; the head
    training.LAYERS
    * training.D
    * (2 * training.HEADS * training.HEAD_DIM + 2 * training.KV_HEADS * training.HEAD_DIM + 3 * training.FF)
    + training.VOCAB * training.D
)


def _micro_batches(folder: Path, segments: np.ndarray) -> Path:
    np.savez(folder / "micro_batches.npz", segments=segments)
    return folder


def test_a_contestant_answers_with_its_steps_and_memory(tmp_path: Path) -> None:
    with train.Resident(train.MATMUL, tmp_path) as resident:
        window = resident.run(2)
    assert len(window["results"]) == 2
    assert window["seconds"] > 0
    assert all(rate > 0 for result in window["results"] for rate in result.values())
    assert resident.peak_bytes > resident.imported_bytes > 10_000_000


def test_a_contestant_that_ends_is_an_error_that_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(Failed, match="exit code 1: KeyError: 'none'"),
        train.Resident(dataclasses.replace(train.MATMUL, variant="none"), tmp_path),
    ):
        pass


def test_flops_count_the_keys_that_each_mask_leaves_visible(tmp_path: Path) -> None:
    S = training.S
    segments = np.zeros((1, 2, S), dtype=np.int32)  # a row of three documents, and one of a document and padding
    segments[0, 0, :100], segments[0, 0, 100:700], segments[0, 0, 700:] = 1, 2, 3
    segments[0, 1, :1000] = 1
    whole, apart = train.flops_of_a_token(_micro_batches(tmp_path, segments))
    causal = np.tril(np.ones((S, S), dtype=bool))
    same = segments[0][:, :, None] == segments[0][:, None, :]
    per_key = 12 * training.LAYERS * training.HEADS * training.HEAD_DIM
    assert whole == pytest.approx(_MATRICES + per_key * causal.sum() / S)
    assert apart == pytest.approx(_MATRICES + per_key * (causal & same).sum() / (2 * S))


def _detail(seconds: float, megabytes: float) -> dict[str, Any]:
    memory = {"peak_bytes": (megabytes + 300) * 1e6, "imported_bytes": 300e6}
    return {"seconds": [seconds] * 4, "results": [{"loss": 1.0}] * 4, "memory": [memory]}


def test_bars_are_held_against_the_best_peer(tmp_path: Path) -> None:
    fast, lean = (peer.label for peer in train.PEERS[:2])
    details = {train.OURS.label: _detail(1.0, 600), fast: _detail(1.1, 2000), lean: _detail(2.0, 1000)}
    found = {row.figure: row for row in train.rows(details, tmp_path)}
    speed, memory = found["tokens/s"], found["peak MB above imports"]
    assert speed.ratio == pytest.approx(1.1)
    assert speed.met is False
    assert memory.ratio == pytest.approx(1000 / 600)
    assert memory.met is True

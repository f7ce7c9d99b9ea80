"""Promises of the order: bijective, pure, different by seed and epoch, without a ceiling, safe from a wrong plan."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.exits import DataError
from data_pipeline.order import Order, Packing, dump_plan, load_plan, make_plan, plan_name
from data_pipeline.permutation import permute
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, write_shards

HOW = Packing(64, "best_fit", 4)


@given(size=st.integers(1, 5000), key=st.text(max_size=8))
def test_a_permutation_is_bijective(size: int, key: str) -> None:
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(size=st.integers(2**32, 2**64), first=st.integers(0, 2**32 - 100), key=st.text(max_size=8))
def test_a_permutation_has_no_ceiling_at_32_bits(size: int, first: int, key: str) -> None:
    image = permute(np.arange(first, first + 100, dtype=np.uint64), size, key)
    assert len(np.unique(image)) == 100
    assert int(image.max()) < size


def test_a_permutation_mixes() -> None:
    image = permute(np.arange(100_000), 100_000, "a").astype(float)
    assert abs(np.corrcoef(np.arange(100_000), image)[0, 1]) < 0.02  # 6 deviations of a random permutation
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert (permute(np.arange(1000), 1000, "a") != permute(np.arange(1000), 1000, "b")).mean() > 0.9


@given(rows=st.lists(st.integers(1, 30), min_size=1, max_size=20), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_row_once_a_window_at_a_time(rows: list[int], seed: int, epoch: int) -> None:
    order = Order(rows, seed, HOW)
    places = [order.place(epoch * sum(rows) + i) for i in range(sum(rows))]
    assert sorted((p.window, p.row) for p in places) == [(w, r) for w, n in enumerate(rows) for r in range(n)]
    assert {p.epoch for p in places} == {epoch}
    windows = [p.window for p in places]
    assert 1 + sum(a != b for a, b in itertools.pairwise(windows)) == len(rows)


@given(samples=st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_a_sample_does_not_depend_on_what_was_asked_before(samples: list[int]) -> None:
    used = Order([5, 9, 3, 7], 1, HOW)
    assert [used.place(i) for i in samples] == [Order([5, 9, 3, 7], 1, HOW).place(i) for i in samples]


def test_seeds_and_epochs_differ_and_the_digest_names_every_input() -> None:
    rows = [50] * 10
    order = Order(rows, 0, HOW)
    first = [order.place(i)[1:] for i in range(500)]
    assert first != [order.place(500 + i)[1:] for i in range(500)]
    assert first != [Order(rows, 1, HOW).place(i)[1:] for i in range(500)]
    others = [(1, HOW), (0, Packing(65, "best_fit", 4)), (0, Packing(64, "pad", 4)), (0, Packing(64, "best_fit", 5))]
    digests = {order.sha256} | {Order(rows, seed, how).sha256 for seed, how in others}
    assert len(digests) == 5
    assert Order(rows, 0, HOW).sha256 == order.sha256


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    random = np.random.default_rng(0)
    documents = (Document(str(i), "s", random.integers(4, 99, random.integers(2, 150)), 9) for i in range(100))
    write_shards(
        documents,
        tmp_path,
        shard_tokens=1000,
        block_documents=5,
        tokenizer_sha256="",
        vocab_size=99,
        config={},
        lineage="",
    )
    return Shards.open(str(tmp_path / "manifest.json"))


def test_a_stored_plan_is_used_and_a_stale_one_made_again(shards: Shards) -> None:
    made = make_plan(shards, HOW)
    assert load_plan(shards, HOW) == made
    assert len(made.rows) == 5
    assert 0.9 < made.fill <= 1
    path = Path(shards.manifest).with_name(plan_name(HOW))
    stored = json.loads(dump_plan(shards, HOW, made))
    path.write_text(json.dumps(stored | {"rows": [1, 2, 3, 4, 5]}))
    assert load_plan(shards, HOW).rows == [1, 2, 3, 4, 5]
    for stale in ({"manifest": "0" * 64}, {"order": 0}):
        path.write_text(json.dumps(stored | {"rows": [1, 2, 3, 4, 5]} | stale))
        assert load_plan(shards, HOW) == made


def test_a_broken_plan_is_named(shards: Shards) -> None:
    Path(shards.manifest).with_name(plan_name(HOW)).write_text("[]")
    with pytest.raises(DataError, match=r"plan-S64-best_fit-w4\.json .*is not a plan.*remove it"):
        load_plan(shards, HOW)


def test_shards_without_documents_are_refused_by_name(tmp_path: Path) -> None:
    write_shards(
        iter(()), tmp_path, shard_tokens=100, block_documents=4, tokenizer_sha256="0" * 64, vocab_size=512, config={},
        lineage="none",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"manifest\.json holds no documents: curate more text"):
        load_plan(Shards.open(str(tmp_path / "manifest.json")), HOW)

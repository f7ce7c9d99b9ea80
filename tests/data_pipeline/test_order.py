"""Promises of the order: bijective, pure, different by seed and epoch, without a ceiling, safe from a wrong plan."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.exits import DataError
from data_pipeline.mixture import Mixture, Stage
from data_pipeline.order import Order, order_sha256
from data_pipeline.permutation import permute
from data_pipeline.plan import Packing, Windows, dump_plan, load_plan, make_plan, plan_name
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, write_shards

HOW = Packing(64, "best_fit", 4)


def order(rows: list[list[int]], seed: int = 0, weights: tuple[int, ...] | None = None) -> Order:
    """An order of sources with so many rows in their windows; each row once an epoch unless weights are given."""
    names = [f"s{number}" for number in range(len(rows))]
    weights = weights or tuple(sum(windows) for windows in rows)
    return Order(names, [np.array(windows) for windows in rows], Mixture([Stage(0, weights)]), seed)


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


WINDOWS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(rows=st.lists(WINDOWS, min_size=1, max_size=4), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_visits_every_row_of_every_source_once(rows: list[list[int]], seed: int, epoch: int) -> None:
    total = sum(map(sum, rows))
    made = order(rows, seed)
    places = [made.place(epoch * total + i) for i in range(total)]
    assert sorted((p.source, p.window, p.row) for p in places) == [
        (s, w, r) for s, windows in enumerate(rows) for w, n in enumerate(windows) for r in range(n)
    ]
    assert {p.epoch for p in places} == {epoch}
    for source, windows in enumerate(rows):  # one window of a source after the other, so that few are open
        visited = [p.window for p in places if p.source == source]
        assert 1 + sum(a != b for a, b in itertools.pairwise(visited)) == len(windows)


@given(
    rows=st.lists(WINDOWS, min_size=1, max_size=4), seed=st.integers(0, 9), weights=st.integers(1, 9), data=st.data()
)
def test_the_samples_of_a_row_are_found_again(
    rows: list[list[int]], seed: int, weights: int, data: st.DataObject
) -> None:
    """In which samples was this row: the inverse of the order, in closed form."""
    made = order(rows, seed, tuple(weights + number for number in range(len(rows))))
    before = data.draw(st.integers(1, 3 * sum(map(sum, rows))))
    sample = data.draw(st.integers(0, before - 1))
    place = made.place(sample)
    same = [other for other in range(before) if made.place(other)._replace(epoch=0) == place._replace(epoch=0)]
    assert list(made.samples(place.source, place.window, place.row, before)) == same


@given(samples=st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_a_sample_does_not_depend_on_what_was_asked_before(samples: list[int]) -> None:
    rows = [[5, 9, 3, 7], [4, 4]]
    used = order(rows, 1)
    assert [used.place(i) for i in samples] == [order(rows, 1).place(i) for i in samples]


def test_no_sample_number_is_too_large() -> None:
    """OLMo-core's order ends below 2^32 instances; this one at no number of samples, rows or epochs."""
    made = order([[50, 60, 70], [30, 1]])
    for sample in (2**31, 2**32, 2**53 + 1, 2**63, 2**70):
        around = [made.place(sample + near) for near in range(-211, 211)]  # two epochs of 211 rows
        assert {place.epoch for place in around} <= {sample // 211 + near for near in (-1, 0, 1)}
        assert len({place[:2] + place[2:] for place in around}) == 422


def test_seeds_and_epochs_differ_and_the_digest_names_every_input() -> None:
    rows = [[50] * 10]
    made = order(rows)
    first = [made.place(i)[2:] for i in range(500)]
    assert first != [made.place(500 + i)[2:] for i in range(500)]
    assert first != [order(rows, 1).place(i)[2:] for i in range(500)]
    inputs = [(HOW, 0), (HOW, 1)] + [
        (how, 0) for how in (Packing(65, "best_fit", 4), Packing(64, "pad", 4), Packing(64, "best_fit", 5))
    ]
    assert len({order_sha256(*each) for each in inputs}) == 5
    assert order_sha256(HOW, 0) == order_sha256(Packing(64, "best_fit", 4), 0)


def write(folder: Path, sources: dict[str, int]) -> Shards:
    random = np.random.default_rng(0)
    documents = (
        Document(f"{source}{i}", source, random.integers(4, 99, random.integers(2, 150)), 9)
        for source, count in sources.items()
        for i in range(count)
    )
    write_shards(
        documents, folder, shard_tokens=1000, block_documents=5, tokenizer_sha256="", vocab_size=99, config={},
        lineage="",
    )  # fmt: skip
    return Shards.open(str(folder / "manifest.json"))


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return write(tmp_path, {"a": 60, "b": 33, "c": 4})


def test_windows_never_hold_two_sources(shards: Shards) -> None:
    windows = Windows(shards, HOW)
    assert [source.num_blocks for source in shards.sources] == [12, 7, 1]
    assert len(windows) == 3 + 2 + 1
    assert [tuple(windows[n]) for n in range(6)] == [
        (0, 0, 4), (0, 4, 8), (0, 8, 12), (1, 12, 16), (1, 16, 19), (2, 19, 20),
    ]  # fmt: skip
    assert [windows.holding(block) for block in range(20)] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 3 + [5]
    for block in shards.blocks():
        assert shards.source_of(block.number).name == block.source
        assert all(name.startswith(block.source) for name in block.ids)


def equal(one: Any, other: Any) -> bool:
    return one.rows.tolist() == other.rows.tolist() and one.tallies == other.tallies


def test_a_stored_plan_is_used_and_a_stale_one_made_again(shards: Shards) -> None:
    made = make_plan(shards, HOW)
    assert equal(load_plan(shards, HOW), made)
    figures = made.figures()
    assert 0.8 < figures["fill"] <= 1
    assert figures["rows"] == sum(made.rows)
    assert figures["needless_splits"] == figures["tokens_cut"] == 0
    assert made.tallies[0].documents == 60
    path = Path(shards.manifest).with_name(plan_name(HOW))
    path.write_bytes(dump_plan(shards, HOW, made))
    assert dump_plan(shards, HOW, made) == path.read_bytes()
    (Path(shards.manifest).parent / "shard-00000.idx").unlink()  # a stored plan is used: no index is read
    assert equal(load_plan(shards, HOW), made)


@pytest.mark.parametrize("stale", [{"manifest": "0" * 64}, {"version": 0}, {"format": 9}])
def test_a_plan_of_another_order_is_made_again(shards: Shards, stale: dict[str, Any]) -> None:
    made = make_plan(shards, HOW)
    path = Path(shards.manifest).with_name(plan_name(HOW))
    path.write_bytes(dump_plan(shards, HOW, made))
    with np.load(path) as stored:
        header = json.loads(stored["header"].tobytes()) | stale
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), rows=np.array([1, 2, 3]))
    assert equal(load_plan(shards, HOW), made)


def test_a_broken_plan_is_named(shards: Shards) -> None:
    path = Path(shards.manifest).with_name(plan_name(HOW))
    path.write_bytes(b"[]")
    with pytest.raises(DataError, match=r"plan-S64-best_fit-w4\.npz .*is not a plan.*remove it"):
        load_plan(shards, HOW)
    made = make_plan(shards, HOW)
    made.rows[0] += 1
    data = bytearray(dump_plan(shards, HOW, made))
    at = data.index(made.rows.tobytes())
    data[at] ^= 1  # what a disk may do; a count that is off by one would move every later sample
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is not a plan \(.*remove it"):
        load_plan(shards, HOW)


def test_concat_cuts_what_best_fit_does_not(shards: Shards) -> None:
    best, concat, pad = (
        make_plan(shards, Packing(64, packing, 4)).figures() for packing in ("best_fit", "concat", "pad")
    )
    assert best["needless_splits"] == pad["needless_splits"] == 0 < concat["needless_splits"]
    assert pad["fill"] < best["fill"] <= concat["fill"]
    assert pad["cross_document"] == 0 < best["cross_document"] <= 1


def test_shards_without_documents_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json holds no documents: curate more text"):
        load_plan(write(tmp_path, {}), HOW)

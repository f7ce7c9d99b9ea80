"""Promises of the stream: processes, workers and restarts change nothing, and no token is lost or seen twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.exits import ConfigError, DataError
from data_pipeline.batch import Batch
from data_pipeline.plan import Plan, dump_plan
from data_pipeline.shards import Document, write_shards
from data_pipeline.stream import TokenStream, documents

S = 32
FIELDS = ("tokens_BS", "targets_BS", "segments_BS", "positions_BS", "weights_BS")


def write(folder: Path, lengths: list[int], block_documents: int = 4) -> str:
    """Shards of three sources whose documents are BOS, distinct numbers, EOS: each number occurs once in all."""
    ends = (np.cumsum(np.array(lengths)) + 4).tolist()
    write_shards(
        (
            Document(
                f"d{i}", f"s{3 * i // len(ends)}", np.array([2, *range(end - length + 2, end), 1]), length, f"u{i}"
            )
            for i, (end, length) in enumerate(zip(ends, lengths, strict=True))
        ),
        folder,
        shard_tokens=600,
        block_documents=block_documents,
        tokenizer_sha256="",
        vocab_size=65_536,
        config={},
        lineage="",
    )
    return str(folder / "manifest.json")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    lengths = np.random.default_rng(0).integers(2, 80, 90).tolist()
    return write(tmp_path_factory.mktemp("tokens"), lengths)


def stream(manifest: str, **changes: object) -> TokenStream:
    values = {"sequence_length": S, "packing": "best_fit", "window_blocks": 5, "seed": 0} | changes
    return TokenStream(manifest, **values)  # type: ignore[arg-type]


def take(stream: TokenStream, count: int, **changes: object) -> list[Batch]:
    values = {"rows_per_step": 12, "micro_batch": 3, "rank": 0, "world": 1} | changes
    batches = stream.batches(**values)  # type: ignore[arg-type]
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()  # type: ignore[attr-defined]


def rows(batches: list[Batch]) -> np.ndarray:
    """All fields of all rows, [rows, fields x S]."""
    return np.concatenate([np.concatenate([getattr(b, name).numpy() for name in FIELDS], axis=1) for b in batches])


def digest(batches: list[Batch]) -> str:
    return hashlib.sha256(rows(batches).tobytes() + str([b.cursor for b in batches]).encode()).hexdigest()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=30),
    sequence_length=st.integers(1, 40),
    packing=st.sampled_from(["best_fit", "concat", "pad"]),
    window_blocks=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_an_epoch_predicts_every_token_but_bos_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    sequence_length: int,
    packing: str,
    window_blocks: int,
    seed: int,
) -> None:
    path = write(tmp_path_factory.mktemp("t"), lengths)
    made = TokenStream(path, sequence_length=sequence_length, packing=packing, window_blocks=window_blocks, seed=seed)
    predicted: Counter[int] = Counter()
    read: Counter[int] = Counter()
    for batch in made.epoch(micro_batch=4):
        counted = batch.weights_BS == 1
        assert torch.equal(counted, batch.segments_BS > 0)
        predicted.update(batch.targets_BS[counted].tolist())
        read.update(batch.tokens_BS[counted].tolist())
    tokens = Counter(int(token) for _, document in documents(path) for token in document)
    assert sum(tokens.values()) == sum(lengths) == made.shards.tokens
    assert predicted == tokens - Counter({2: len(lengths)})
    assert read == tokens - Counter({1: len(lengths)})


def test_segments_and_positions_follow_the_documents(manifest: str) -> None:
    made = stream(manifest)
    whole = dict(documents(manifest))
    blocks = list(made.shards.blocks())
    for sample, batch in zip(range(60), take(made, 60, rows_per_step=1, micro_batch=1), strict=True):
        slot = 0
        for number, span in enumerate(made.spans(sample), start=1):
            here = slice(slot, slot + span.slots)
            block = blocks[span.block]
            name = block.ids[span.document]
            expected = whole[name][span.start : span.start + span.slots + 1]
            assert batch.tokens_BS[0, here].tolist() == expected[:-1].tolist()
            assert batch.targets_BS[0, here].tolist() == expected[1:].tolist()
            assert (batch.segments_BS[0, here] == number).all()
            assert batch.positions_BS[0, here].tolist() == list(range(span.slots))
            assert (block.source, block.urls[span.document]) == (f"s{int(name[1:]) // 30}", f"u{name[1:]}")
            assert span.weight == 1
            slot += span.slots
        for name in FIELDS:
            assert (getattr(batch, name)[0, slot:] == 0).all()
    assert [getattr(batch, name).dtype for name in FIELDS] == [torch.int64] * 2 + [torch.int32] * 2 + [torch.float32]


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 1), (1, 12), (2, 3), (2, 6), (3, 2), (4, 3), (12, 1)])
def test_ranks_share_the_same_steps(manifest: str, world: int, micro_batch: int) -> None:
    alone = rows(take(stream(manifest), 40))  # 10 steps of 12 rows: more than an epoch
    parts = 12 // (micro_batch * world)
    ranks = [take(stream(manifest), 10 * parts, micro_batch=micro_batch, rank=r, world=world) for r in range(world)]
    together = [ranks[r][n] for n in range(10 * parts) for r in range(world)]
    np.testing.assert_array_equal(rows(together), alone)


def test_the_cursor_counts_finished_steps(manifest: str) -> None:
    batches = take(stream(manifest), 9)  # 4 micro-batches a step
    assert [batch.cursor.samples_done for batch in batches] == [0, 0, 0, 12, 12, 12, 12, 24, 24]


@pytest.mark.parametrize("step", [1, 4, 9, 23])
def test_resume_changes_nothing(manifest: str, step: int) -> None:
    through = take(stream(manifest), 4 * 30)
    assert 12 * step < stream(manifest).rows_per_epoch * 3
    resumed = take(stream(manifest), 4 * (30 - step), start=through[4 * step - 1].cursor)
    np.testing.assert_array_equal(rows(resumed), rows(through[4 * step :]))
    assert [b.cursor for b in resumed] == [b.cursor for b in through[4 * step :]]


def test_epochs_hold_the_same_rows_in_another_order(manifest: str) -> None:
    made = stream(manifest)
    count = made.rows_per_epoch
    both = rows(take(made, 2 * count, rows_per_step=1, micro_batch=1))
    first, second = both[:count], both[count:]
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.unique(first, axis=0), np.unique(second, axis=0))


SCRIPT = """
import hashlib, itertools, json, sys
import torch
from data_pipeline.batch import Cursor
from data_pipeline.stream import TokenStream

if __name__ == "__main__":
    manifest, workers, rank, world, start, count = sys.argv[1], *map(int, sys.argv[2:])
    torch.manual_seed(5)
    stream = TokenStream(
        manifest, sequence_length=32, packing="best_fit", window_blocks=5, seed=0, workers=workers
    )
    batches = stream.batches(
        rows_per_step=12, micro_batch=3, rank=rank, world=world, start=stream.cursor(start) if start else None
    )
    digest = [
        (hashlib.sha256(batch.tokens_BS.numpy().tobytes() + batch.segments_BS.numpy().tobytes()).hexdigest(),
         batch.cursor.samples_done)
        for batch in itertools.islice(batches, count)
    ]
    batches.close()
    print(json.dumps([digest, torch.rand(1).item()]))
"""


def test_processes_and_workers_change_nothing(manifest: str, tmp_path: Path) -> None:
    """One process; two processes; three workers; three workers after a resume: the same batches, bit for bit."""
    script = tmp_path / "read.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]

    def start(*numbers: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), manifest, *map(str, numbers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)

    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [start(0, 0, 1, 0, 40), start(0, 0, 2, 0, 20), start(0, 1, 2, 0, 20)]
    outputs = [process.communicate()[0] for process in processes]
    processes = [start(3, 0, 1, 0, 40), start(3, 0, 1, 60, 20)]
    outputs += [process.communicate()[0] for process in processes]
    (one, random), (first, _), (second, _), (workers, random_of_workers), (resumed, _) = map(json.loads, outputs)
    pairs = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert [batch[0] for batch in pairs] == [batch[0] for batch in one]
    assert workers == one
    assert resumed == one[20:]
    assert random_of_workers == random  # the trainer's random numbers do not depend on workers either


def test_a_broken_shard_reaches_the_trainer_as_itself(tmp_path: Path) -> None:
    path = write(tmp_path, [20] * 40)
    readers = [stream(path), stream(path, workers=1)]
    shard = tmp_path / "shard-00001.tar"
    data = bytearray(shard.read_bytes())
    data[1500] ^= 255
    shard.write_bytes(data)
    for reader in readers:
        with pytest.raises(DataError, match=r"^[^\n]*shard-00001\.tar[^\n]*sha256[^\n]*--block [^\n]*:\d+@\w{8}`$"):
            take(reader, 100)


def test_no_worker_outlives_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, [20] * 40)
    reader = stream(path, workers=1)
    shard = tmp_path / "shard-00001.tar"
    data = bytearray(shard.read_bytes())
    data[1500] ^= 255
    shard.write_bytes(data)
    with pytest.raises(DataError) as error:
        take(reader, 100)
    assert error.tb is not None  # which holds the frames of all that was at work
    assert multiprocessing.active_children() == []


LEAVING = """
import sys
from data_pipeline.stream import TokenStream

if __name__ == "__main__":
    stream = TokenStream(sys.argv[1], sequence_length=32, packing="best_fit", window_blocks=5, seed=0, workers=1)
    batches = stream.batches(rows_per_step=12, micro_batch=3, rank=0, world=1)
    next(batches)
"""


def test_a_process_with_workers_can_end_at_any_time(manifest: str, tmp_path: Path) -> None:
    """Its workers hear no stop signal, so it cannot wait for them to answer one."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, str(script), manifest], check=True, timeout=60, env=environment)


def test_closing_stops_the_thread(manifest: str) -> None:
    before = set(threading.enumerate())
    batches = stream(manifest).batches(rows_per_step=12, micro_batch=3, rank=0, world=1)
    assert set(threading.enumerate()) <= before  # nothing runs before the first batch is asked for
    next(batches)
    assert len(set(threading.enumerate()) - before) == 1
    batches.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before


def test_memory_is_bounded(manifest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream keeps the one window that each source is at, and gives the same with next to no indexes."""
    whole = rows(take(stream(manifest, window_blocks=2), 60))
    monkeypatch.setattr("data_pipeline.reader._INDEXES", 1)
    monkeypatch.setattr("data_pipeline.feeder._ROWS_AT_ONCE", 1)
    made = stream(manifest, window_blocks=2)
    np.testing.assert_array_equal(rows(take(made, 60)), whole)
    assert len(made.shards._indexes) == 1
    assert {len(window.tokens) for window in made._parts[0]._open.values()} <= {1, 2}  # a window of each source


def test_a_cursor_of_other_shards_or_another_order_is_refused(manifest: str, tmp_path: Path) -> None:
    other = write(tmp_path, [30] * 20)
    cursor = take(stream(manifest), 4)[-1].cursor
    with pytest.raises(
        ConfigError, match=r"after 12 samples .*the shards \(manifest sha256 .*, here .*\) differ: rest"
    ):
        take(stream(other), 1, start=cursor)
    with pytest.raises(ConfigError, match=r"the order \(sha256 .*seed=7, data\.sequence_length=32.*\) differ: restore"):
        take(stream(manifest, seed=7), 1, start=cursor)
    with pytest.raises(ConfigError, match=r"the order \(sha256 [^=]*seed=7 \(was 0\)\) differ: restore"):
        stream(manifest, seed=7).check(cursor, stream(manifest).describe())
    with pytest.raises(ConfigError, match=r"the shards .* and the order"):
        take(stream(other, packing="pad"), 1, start=cursor)


def test_a_plan_that_does_not_match_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, [30] * 20)
    made = stream(path)
    wrong = Plan(made.plan.rows + 1, made.plan.tallies, S)
    (tmp_path / "plan-S32-best_fit-w5.npz").write_bytes(dump_plan(made.shards, made.how, wrong))
    with pytest.raises(DataError, match=r"plan-S32-best_fit-w5\.npz .*gives window \d 7 rows, .*fill 6: remove"):
        take(stream(path), 1)


def test_a_held_out_pass_is_the_same_for_every_world(manifest: str) -> None:
    made = stream(manifest)
    alone = rows(list(made.epoch(micro_batch=1, rows=17)))
    assert len(alone) == 17
    parts = [list(made.epoch(micro_batch=2, rank=rank, world=3, rows=17)) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    together = rows([batch for batches in zip(*parts, strict=True) for batch in batches])
    np.testing.assert_array_equal(together[:17], alone)
    assert not together[17:].any()


def test_whole_documents_come_in_the_order_of_the_shards(manifest: str) -> None:
    read = list(documents(manifest))
    assert [name for name, _ in read] == [f"d{i}" for i in range(90)]
    assert all(tokens[0] == 2 and tokens[-1] == 1 for _, tokens in read)


def test_rows_that_ranks_cannot_share_are_a_programmers_error(manifest: str) -> None:
    with pytest.raises(ValueError, match=r"rows_per_step=12 .* micro_batch=5"):
        stream(manifest).batches(rows_per_step=12, micro_batch=5, rank=0, world=1)


def test_a_cursor_can_be_made_for_any_sample(manifest: str) -> None:
    made = stream(manifest)
    assert made.cursor(36).samples_done == 36
    np.testing.assert_array_equal(rows(take(made, 4, start=made.cursor(36))), rows(take(made, 16)[12:]))

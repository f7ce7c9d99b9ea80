"""Promises of checkpoints in Google Cloud Storage, by its own client on a server that plays it.

Here since this environment holds gcsfs; nothing of it needs the chips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import fsspec
import pytest
import torch

from conf.exits import DataError
from tests.trainer.faulty_store import Died, FaultyStore
from tests.trainer.threads import on_each
from tests.xla.loopback_gcs import LoopbackGcs

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # it would ask by gRPC what kind of bucket this is

from trainer import checkpoint
from trainer.checkpoint import saving, store
from trainer.checkpoint.parts import Held, Holding

WHOLE = {"a": {"shape": [200, 400], "dtype": "float32"}}  # more than a piece of an upload


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackGcs]:
    with LoopbackGcs().running() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon", "skip_instance_cache": True})
        monkeypatch.setattr(store, "_BLOCK", 2**18)
        yield server


def save(place: store.Store, step: int, attempt: str) -> None:
    held = Holding(WHOLE, [Held("a", [0, 0], torch.full((200, 400), float(step)))])
    index = checkpoint.write_payload(place, step, attempt, 0, held)
    saving.commit(place, step, attempt, 1, {"step": step})
    checkpoint.verify_written(place, step, attempt, index)
    checkpoint.retain(place, 1, None)


def loaded(place: store.Store) -> int:
    """The newest step, each number of it looked at."""
    found = checkpoint.find(place)
    assert found is not None
    found.verify()
    assert found.state == {"step": found.step}
    assert (checkpoint.read_tensor(found, "a") == found.step).all()
    return found.step


def test_the_store_keeps_its_promises(gcs: LoopbackGcs) -> None:
    bucket = checkpoint.open_store("gs://bucket/run").within("below")
    assert bucket.size("one") is None
    assert bucket.names() == []
    bucket.write("deep/one", iter([b"abc", memoryview(b"def" * 200_000)]))
    bucket.create("two", b"2")
    with pytest.raises(FileExistsError):
        bucket.create("two", b"3")
    assert gcs.refused == 1
    for number in range(5):
        bucket.create(f"many/{number}", b"")
    assert bucket.names() == ["deep/one", *(f"many/{number}" for number in range(5)), "two"]
    assert bucket.names("deep") == ["deep/one"]
    assert bucket.size("deep/one") == 600_003
    assert bucket.read("deep/one", 1, 4) == b"bcde"
    assert bucket.read("deep/one", 600_000) == b"def"
    assert bucket.read("two") == b"2"
    with pytest.raises(FileNotFoundError):
        bucket.read("three")
    bucket.delete("two")
    bucket.delete("two")
    assert bucket.size("two") is None
    (end,) = on_each(1, lambda alone: checkpoint.meet(bucket, alone))
    assert end is None


def test_a_bucket_that_is_not_there_ends_the_start(gcs: LoopbackGcs) -> None:
    bucket = checkpoint.open_store("gs://missing/run")
    assert checkpoint.committed_steps(bucket) == []
    (end,) = on_each(1, lambda alone: checkpoint.meet(bucket, alone))
    assert isinstance(end, DataError)
    assert "missing" in str(end)


def test_an_upload_that_breaks_off_leaves_no_object(gcs: LoopbackGcs) -> None:
    def breaks() -> Iterator[bytes]:
        yield bytes(2**19)
        raise ValueError("the source")

    with pytest.raises(ValueError, match=r"^the source$"):  # as it is: the bucket is not to blame
        checkpoint.open_store("gs://bucket/run").write("one", breaks())
    assert gcs.objects == {}


def test_a_death_at_any_writing_call_leaves_the_last_commit(gcs: LoopbackGcs) -> None:
    survived, number = [], 0
    while True:
        number += 1
        bucket = checkpoint.open_store(f"gs://bucket/{number}")
        save(bucket, 1, "attempt-1")
        try:
            save(FaultyStore(bucket, die_at=number), 2, "attempt-2")
        except Died:
            survived.append(loaded(bucket))
            gcs.objects.clear()
        else:
            break
    assert len(survived) > 10
    assert survived == sorted(survived)
    assert {*survived} == {1, 2}


def test_a_commit_whose_answer_is_lost_counts(gcs: LoopbackGcs) -> None:
    """The client asks again by itself, and is told that the file is there."""
    bucket = checkpoint.open_store("gs://bucket/run")
    held = Holding(WHOLE, [Held("a", [0, 0], torch.ones(200, 400))])
    checkpoint.write_payload(bucket, 1, "attempt-1", 0, held)
    gcs.faults.extend(["", "after"])  # the manifest, and COMMIT
    saving.commit(bucket, 1, "attempt-1", 1, {"step": 1})
    assert gcs.refused == 1
    assert loaded(bucket) == 1

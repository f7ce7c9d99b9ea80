"""Promises of checkpoints on storage that fails: what is loaded is the last commit that is whole, or nothing."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conf.exits import ConfigError, DataError
from tests.chaos.storage import (
    PROCESSES,
    STORES,
    damages,
    deaths_at_calls_to_the_disk,
    deaths_at_writing_calls,
    failing_requests,
    flip,
    loaded,
    save,
    shelf,
    small_pieces,
)
from tests.trainer.faulty_store import Died, FaultyStore, HttpError
from tests.trainer.threads import on_each
from trainer import checkpoint
from trainer.checkpoint import quarantine
from trainer.checkpoint.committed import in_quarantine
from trainer.checkpoint.store import Folder, patient


@pytest.fixture(autouse=True)
def at_once() -> Iterator[list[float]]:
    """No pauses; what they would have been."""
    with small_pieces() as waited:
        yield waited


# --- death at every call


@pytest.mark.parametrize("kind", STORES)
def test_a_death_at_any_writing_call_leaves_the_last_commit(kind: str, tmp_path: Path) -> None:
    survived = list(deaths_at_writing_calls(kind, tmp_path))
    assert len(survived) > 25
    assert survived == sorted(survived)  # step 1 up to a call, step 2 from then on
    assert {*survived} == {1, 2}


@pytest.mark.parametrize("loses", [False, True], ids=["process", "power"])
def test_a_death_at_any_call_to_the_disk_leaves_the_last_commit(tmp_path: Path, loses: bool) -> None:
    calls: set[str] = set()
    survived = list(deaths_at_calls_to_the_disk(tmp_path, loses, calls))
    assert calls >= {"open", "write", "fsync", "link", "unlink", "mkdir", "rmdir"}
    assert len(survived) > 50
    assert survived == sorted(survived)
    assert {*survived} == {1, 2}


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("error", [Died, HttpError], ids=["death", "503"])
def test_a_request_to_a_bucket_that_fails_leaves_the_last_commit(how: str, error: type[BaseException]) -> None:
    outcomes = list(failing_requests(how, error))
    assert len(outcomes) > 15
    assert outcomes == sorted(outcomes)
    assert {*outcomes} == {1, 2}


def test_a_commit_whose_answer_is_lost_counts_and_keeps_its_files() -> None:
    store = shelf()
    pipe, lost = store._storage.pipe_file, []

    def losing(path: str, value: bytes, **options: str) -> None:
        pipe(path, value, **options)
        if path.endswith("/COMMIT"):
            lost.append(path)
            raise HttpError

    store._storage.pipe_file = losing
    save(store, 1, "attempt-1")
    assert lost
    checkpoint.discard(store, 1, "attempt-1")
    assert loaded(store) == (1, [])


def test_a_commit_that_nobody_could_ask_for_counts_at_the_next_try(tmp_path: Path) -> None:
    """Its answer is lost, and then storage is silent: the same step, saved again, finds it there."""

    class Losing(FaultyStore):
        def create(self, name: str, data: bytes) -> None:
            super().create(name, data)
            if name == "COMMIT":
                self._root.silent = 10**6
                raise OSError("the answer is lost")

        def within(self, folder: str) -> Losing:
            below = Losing(self._store.within(folder))
            below._root = self._root
            return below

    def tries(alone) -> None:
        tensors = {"a": torch.full((6, 5), 1.0), "b": torch.full((7,), 1.0)}
        with pytest.raises(DataError, match=r"COMMIT cannot be reached"):
            checkpoint.save(Losing(Folder(tmp_path)), 1, "attempt-1", tensors, {"step": 1}, alone)
        checkpoint.save(Folder(tmp_path), 1, "attempt-2", tensors, {"step": 1}, alone)
        assert checkpoint.find(tmp_path).attempt == "attempt-1"
        with pytest.raises(DataError, match="File exists"):  # which is another checkpoint
            checkpoint.save(Folder(tmp_path), 1, "attempt-3", tensors, {"step": 1, "other": 1}, alone)

        broken = tmp_path / "step-00000001/attempt-1/rank-00000.safetensors"
        broken.write_bytes(flip(broken.read_bytes(), random.Random(1)))
        with pytest.raises(DataError, match="does not have the sha256"):  # what counts is read back
            checkpoint.save(Folder(tmp_path), 1, "attempt-4", tensors, {"step": 1}, alone)
        checkpoint.save(Folder(tmp_path), 1, "attempt-5", tensors, {"step": 1}, alone)

    assert on_each(1, tries) == [None]
    assert loaded(Folder(tmp_path)) == (1, [])
    assert checkpoint.find(tmp_path).attempt == "attempt-5"


def test_a_copy_says_which_of_two_places_failed(tmp_path: Path) -> None:
    """A disk that can no longer be read is not the bucket's fault."""
    save(Folder(tmp_path), 1, "attempt-1")
    bucket = shelf()

    class Failing(FaultyStore):
        def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
            if name.endswith(".safetensors"):
                raise OSError(5, "Input/output error")
            return super().read(name, begin, length)

        def within(self, folder: str) -> Failing:
            return Failing(self._store.within(folder))

    with pytest.raises(DataError, match=rf"^{tmp_path}/.*rank-00000\.safetensors cannot be reached \(OSError: .*Input"):
        checkpoint.copy_payload(Failing(Folder(tmp_path)), bucket, 1, "attempt-2", 0, PROCESSES)
    assert bucket.names() == []


# --- broken files


def test_200_damages_are_each_found_and_the_step_before_is_loaded(tmp_path: Path) -> None:
    """Bits, lengths and existence of every file of a committed step. Afterwards the step can be committed again."""
    done = list(damages(tmp_path, 200))
    for damage in done:
        assert damage.found, damage
        assert damage.recovered, damage
    assert len({(damage.file, damage.how) for damage in done}) == (PROCESSES + 2) * 3


def test_a_death_while_a_step_is_put_aside_is_completed_by_the_next_start(tmp_path: Path) -> None:
    number, ended = 0, False
    while not ended:
        number += 1
        store = Folder(tmp_path / str(number))
        save(store, 1, "attempt-1")
        save(store, 2, "attempt-2")
        broken = store.path / "step-00000002/attempt-2/rank-00001.safetensors"
        broken.write_bytes(flip(broken.read_bytes(), random.Random(number)))
        try:
            loaded(FaultyStore(store, die_at=number))
            ended = True
        except Died:
            assert loaded(store)[0] == 1
        assert checkpoint.committed_steps(store) == [1]
        assert not (store.path / "step-00000002/COMMIT").exists()
        assert list(in_quarantine(store)) == [2]
        with pytest.raises(DataError, match=r"no checkpoint of step 2 .*in quarantine: .*rank-00001\.safetensors does"):
            checkpoint.find(store, 2)
    assert number == 5


def test_what_is_void_is_not_committed_though_its_commit_is_still_there(tmp_path: Path) -> None:
    """Nobody who only reads may use it, or finish what another process began."""
    store = Folder(tmp_path)
    save(store, 1, "attempt-1")
    save(store, 2, "attempt-2")
    with pytest.raises(Died):
        quarantine.quarantine(patient(FaultyStore(store, die_at=3)), 2, "a test")
    assert (tmp_path / "step-00000002/COMMIT").exists()
    assert checkpoint.committed_steps(store) == [1]
    assert checkpoint.find(store).step == 1
    assert (tmp_path / "step-00000002/COMMIT").exists()


def test_without_a_whole_checkpoint_nothing_begins_anew(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    for step in (1, 2):
        save(store, step, f"attempt-{step}")
        (tmp_path / f"step-{step:08d}/attempt-{step}/MANIFEST.json").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"no checkpoint in .* is whole \(step 1: .*; step 2: .*MANIFEST\.json is"):
            loaded(store)


def test_a_payload_that_does_not_read_back_is_put_aside_at_once(tmp_path: Path) -> None:
    """A disk that takes bytes and gives others: the save fails, and the step before stays the newest."""

    class Lying(Folder):
        def within(self, folder: str) -> Lying:
            return Lying(self.path / folder)

        def write(self, name: str, chunks) -> None:
            super().write(name, chunks)
            (self.path / name).write_bytes(flip((self.path / name).read_bytes(), random.Random(1)))

    save(Folder(tmp_path), 1, "attempt-1")
    tensors = {"a": torch.ones(6, 5), "b": torch.ones(7)}
    (failure,) = on_each(1, lambda alone: checkpoint.save(Lying(tmp_path), 2, "attempt-2", tensors, {"step": 2}, alone))
    assert isinstance(failure, DataError)
    assert "rank-00000.safetensors does not have the sha256 of the manifest (corrupt)" in str(failure)
    assert loaded(Folder(tmp_path)) == (1, [])


# --- silence


def test_storage_that_answers_after_a_while_is_waited_for(tmp_path: Path, at_once: list[float]) -> None:
    save(Folder(tmp_path), 1, "attempt-1")
    assert loaded(FaultyStore(Folder(tmp_path), silent=4)) == (1, [])
    assert len(at_once) == 4
    assert all(2 * 0.5 * n > wait for n, wait in zip((0.5, 1, 2, 4), at_once, strict=True))


def test_storage_that_stays_silent_ends_the_start_and_nothing_is_put_aside(tmp_path: Path) -> None:
    """Whenever it falls silent: that nothing can be said of a file is not that it is broken."""
    save(Folder(tmp_path), 1, "attempt-1")
    save(Folder(tmp_path), 2, "attempt-2")
    before = Folder(tmp_path).names()

    class FallsSilent(FaultyStore):
        def _answer(self) -> None:
            self._root.left -= 1
            if self._root.left < 0:
                raise OSError("503 Service Unavailable")

        def within(self, folder: str) -> FallsSilent:
            below = FallsSilent(self._store.within(folder))
            below._root = self._root
            return below

    ends = 0
    for answers in range(100):
        store = FallsSilent(Folder(tmp_path))
        store.left = answers
        (found,) = on_each(1, functools.partial(checkpoint.newest_sound, [store], tell=pytest.fail))
        if not isinstance(found, Exception):
            break
        assert isinstance(found, DataError), found
        assert re.search(r"cannot be reached \(OSError: 503 Service Unavailable; 6 tries\)", str(found))
        ends += 1
    assert found.step == 2
    assert ends > 5
    assert Folder(tmp_path).names() == before


# --- several processes


def test_processes_share_the_files_and_agree(tmp_path: Path) -> None:
    """Each file is read by one of them; a fault that one finds makes all go on from the step before."""
    for step in (1, 2):
        save(Folder(tmp_path), step, f"attempt-{step}")
    broken = tmp_path / "step-00000002/attempt-2/rank-00001.safetensors"
    broken.write_bytes(flip(broken.read_bytes(), random.Random(3)))
    digested: list[str] = []

    class Counting(Folder):
        def within(self, folder: str) -> Counting:
            return Counting(self.path / folder)

        def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
            if name.endswith(".safetensors") and begin == 0:
                digested.append(f"{self.path.name}/{name}")
            return super().read(name, begin, length)

    told: list[tuple[int, int]] = []

    def start(process) -> int:
        rank = process.processes.rank
        return checkpoint.newest_sound([Counting(tmp_path)], process, lambda step, _: told.append((rank, step))).step

    assert on_each(3, start) == [1, 1, 1]
    assert told == [(0, 2)]
    assert sorted(digested) == [f"attempt-{step}/rank-0000{rank}.safetensors" for step in (1, 2) for rank in (0, 1)]


def test_one_process_that_cannot_read_ends_all(tmp_path: Path) -> None:
    save(Folder(tmp_path), 1, "attempt-1")
    stores = [Folder(tmp_path), FaultyStore(Folder(tmp_path), silent=10**6)]
    ends = on_each(2, lambda each: checkpoint.newest_sound([stores[each.processes.rank]], each, lambda *said: None))
    assert all(isinstance(end, DataError) for end in ends), ends
    assert checkpoint.committed_steps(tmp_path) == [1]


def test_processes_on_different_disks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.meeting._LONGEST", 0.2)
    assert on_each(2, lambda each: checkpoint.meet(Folder(tmp_path / "one"), each)) == [None, None]
    assert list((tmp_path / "one").iterdir()) == []
    ends = on_each(3, lambda each: checkpoint.meet(Folder(tmp_path / str(each.processes.rank)), each))
    said = r"2 of 3 processes do not see what the first one writes to .*: set checkpoint\.directory to a bucket"
    assert all(isinstance(end, ConfigError) and re.search(said, str(end)) for end in ends)


def test_storage_that_replaces_files_is_refused() -> None:
    store = shelf()
    store._storage.pipe_file = lambda path, value, **_: store._storage.objects.update({path: value})
    store._storage.rm_file = lambda path: store._storage.objects.pop(path)
    (end,) = on_each(1, lambda alone: checkpoint.meet(store, alone))
    assert isinstance(end, ConfigError)
    assert "replaces a file where it is told to create one only" in str(end)


@pytest.mark.parametrize("url", ["http://host/x", "hf://host/x", "zip://x::/y", "pipe:cat"])
def test_storage_that_cannot_create_only_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(url)):
        checkpoint.open_store(url)

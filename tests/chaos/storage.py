"""Storage that fails under a save, and damage to what was committed: what is loaded is the last commit that is whole.

At each call of a save in turn all that it would still do is left undone, as where its process dies, or a bucket does
not answer; then the step that a run goes on from is read, each number of it. The parts of two processes are written one
after the other, and no model is needed.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.exits import DataError
from tests.chaos import SEED
from tests.trainer.faulty_store import Died, FaultyStore, HttpError, Shelf, mortal_disk
from tests.trainer.threads import on_each
from trainer import checkpoint
from trainer.checkpoint import saving
from trainer.checkpoint import store as storage
from trainer.checkpoint.committed import in_quarantine
from trainer.checkpoint.parts import Held, Holding
from trainer.checkpoint.store import Bucket, Folder, Store

PROCESSES = 2
WHOLE = {"a": {"shape": [6, 5], "dtype": "float32"}, "b": {"shape": [7], "dtype": "float32"}}


@contextmanager
def small_pieces() -> Iterator[list[float]]:
    """While entered, files come in small pieces, so that there are many calls; and no pauses are made: gives those."""
    waited: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_sleep", waited.append)
        patch.setattr("trainer.checkpoint.payload.PIECE", 64)
        patch.setattr(storage, "_BLOCK", 128)
        yield waited


def held(step: int, rank: int) -> Holding:
    """A process's half of `a`, and of the first one `b`; every number is the step's."""
    parts = [Held("a", [3 * rank, 0], torch.full((3, 5), float(step)))]
    return Holding(WHOLE, parts + ([Held("b", [0], torch.full((7,), float(step)))] if rank == 0 else []))


def save(store: Store, step: int, attempt: str, keep_last: int = 9) -> None:
    """All of a save, as the processes do it one after the other."""
    indexes = [checkpoint.write_payload(store, step, attempt, rank, held(step, rank)) for rank in range(PROCESSES)]
    saving.commit(store, step, attempt, PROCESSES, {"step": step})
    for index in indexes:
        checkpoint.verify_written(store, step, attempt, index)
    checkpoint.retain(store, keep_last, None)


def loaded(store: Store) -> tuple[int, list[tuple[int, str]]]:
    """The step that a run goes on from, each number of it looked at, and what was put aside."""
    aside: list[tuple[int, str]] = []
    (found,) = on_each(1, lambda alone: checkpoint.newest_sound([store], alone, lambda *said: aside.append(said)))
    if isinstance(found, Exception):
        raise found
    for name, whole in WHOLE.items():
        into = torch.zeros(whole["shape"])
        checkpoint.load_tensors(found, {name: into}, left=lambda name: True)
        assert (into == found.step).all(), f"{name} is a mixture"
    assert found.state == {"step": found.step}
    return found.step, aside


def shelf() -> Bucket:
    return Bucket(Shelf(), "shelf://bucket/run")


STORES: dict[str, Callable[[Path], Store]] = {"folder": Folder, "bucket": lambda path: shelf()}


# --- death at every call


def deaths_at_writing_calls(kind: str, folder: Path) -> Iterator[int]:
    """Saves step 2, verifies it and removes step 1; dies at each call of that in turn, and saves it once more.

    Gives the step that is loaded after each death. Raises AssertionError where that is a mixture, or anything is.
    """
    number = 0
    while True:
        number += 1
        store = STORES[kind](folder / str(number))
        save(store, 1, "attempt-1")
        try:
            save(FaultyStore(store, die_at=number), 2, "attempt-2", keep_last=1)
        except Died:
            step, aside = loaded(store)
            assert not aside
            for each in checkpoint.committed_steps(store):  # none is seen half removed
                found = checkpoint.find(store, each)
                assert found is not None
                found.verify()
            yield step
            if step == 1:
                save(store, 2, "attempt-3", keep_last=1)
            checkpoint.retain(store, 1, None)
            assert loaded(store) == (2, [])
            assert checkpoint.committed_steps(store) == [2]
        else:
            return


def deaths_at_calls_to_the_disk(folder: Path, loses: bool, seen: set[str] | None = None) -> Iterator[int]:
    """The same below the store: each open, write, fsync, link, unlink, mkdir and rmdir; their names go into `seen`."""
    number = 0
    while True:
        number += 1
        store = Folder(folder / str(number))
        save(store, 1, "attempt-1")
        try:
            with mortal_disk(number, loses) as calls:
                save(store, 2, "attempt-2", keep_last=1)
        except Died:
            step, aside = loaded(store)
            assert not aside
            yield step
            if step == 1:
                save(store, 2, "attempt-3")
                assert loaded(store) == (2, [])
        else:
            if seen is not None:
                seen |= {call.split()[0] for call in calls}
            return


def failing_requests(how: str, error: type[BaseException]) -> Iterator[int]:
    """Each request of a save to a bucket in turn is not heard, or is carried out and its answer lost."""
    number = 0
    while True:
        number += 1
        store = shelf()
        save(store, 1, "attempt-1")
        requests = store._storage.requests
        requests.count, requests.at, requests.how, requests.error = 0, number, how, error
        try:
            save(store, 2, "attempt-2")
            saved = True
        except (Died, OSError):
            saved = False
        if requests.count < number:
            return
        requests.at = -1
        step, aside = loaded(store)
        assert not aside
        assert step == 2 or not saved
        yield step
        if step == 1:
            checkpoint.discard(store, 2, "attempt-2")
            save(store, 2, "attempt-3")
        assert loaded(store)[0] == 2


# --- broken files


def flip(data: bytes, draw: random.Random) -> bytes:
    at, bit = draw.randrange(len(data)), 1 << draw.randrange(8)
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def gone(data: bytes, draw: random.Random) -> None:
    return None


@dataclass(frozen=True)
class Damage:
    """What was done to a file of the committed step 2, and what came of it.

    loaded     the step that a run goes on from, and who only reads; 0: none; 2: also where that is a mixture
    aside      what was put into quarantine: steps and reasons
    recovered  whether the step could be committed and loaded again, where that was tried
    """

    file: str
    how: str
    loaded: int
    aside: list[tuple[int, str]]
    recovered: bool

    @property
    def found(self) -> bool:
        """Whether it was noticed, and the file named. A step whose COMMIT is gone does not exist."""
        if self.file.endswith("/COMMIT") and self.how == "gone":
            return self.loaded == 1 and not self.aside
        # A COMMIT may name another attempt.
        named = [step for step, reason in self.aside if Path(self.file).name in reason or self.file.endswith("/COMMIT")]
        return self.loaded == 1 and named == [2]


def damages(folder: Path, count: int, seed: int = SEED) -> Iterator[Damage]:
    """Bits, lengths and existence of files of a committed step. Now and then it is committed again afterwards."""
    draw, sound = random.Random(seed), Folder(folder / "sound")
    for step in (1, 2):
        save(sound, step, f"attempt-{step}")
    files = [name for name in sound.names() if name.startswith("step-00000002/")]
    for number in range(count):
        name, damage = draw.choice(files), draw.choice((flip, flip, cut, gone))
        damaged = folder / "damaged"
        shutil.copytree(sound.path, damaged)
        data = damage((damaged / name).read_bytes(), draw)
        (damaged / name).unlink()
        if data is not None:
            (damaged / name).write_bytes(data)
        try:
            read = checkpoint.newest([damaged], every_byte=True, tell=lambda *said: None)
            step, aside = loaded(Folder(damaged))
            assert read is not None
            assert read.step == step, "who only reads gets another step"
        except DataError:
            step, aside = 0, []
        except AssertionError:
            step, aside = 2, []
        recovered = not aside or in_quarantine(Folder(damaged)) == dict(aside)
        if aside and number % 20 == 0:
            save(Folder(damaged), 2, "attempt-3")
            recovered &= loaded(Folder(damaged)) == (2, [])
        yield Damage(name, damage.__name__, step, aside, recovered)
        shutil.rmtree(damaged)


# --- figures


def scenario_storage(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """Rows of what became of a save that dies or fails at each of its calls, and of a damaged checkpoint.

    The short form is of a few damages only.
    """
    with small_pieces():
        if short:
            return rows_of_damages(list(damages(folder, 20)))
        calls = [deaths_at_writing_calls(kind, folder / kind) for kind in STORES]
        disk = [deaths_at_calls_to_the_disk(folder / str(loses), loses) for loses in (False, True)]
        requests = [failing_requests(how, error) for how in ("before", "after") for error in (Died, HttpError)]
        return [
            *(row_of_deaths(f"a writing call to a {kind}", [each]) for kind, each in zip(STORES, calls, strict=True)),
            row_of_deaths("a call to the disk, or the power does", disk),
            row_of_deaths("a request to a bucket, or that is refused", requests),
            *rows_of_damages(list(damages(folder, 200))),
        ]


def rows_of_damages(done: list[Damage]) -> list[dict[str, Any]]:
    """How many were found, went unseen, and left the step to be saved again."""
    count, found = len(done), sum(damage.found for damage in done)
    silent, again = (sum(each) for each in zip(*((d.loaded != 1, d.recovered) for d in done), strict=True))
    return [
        {"figure": "damages of a checkpoint found", "ours": found, "bar": count, "met": found == count},
        {"figure": "silent loads of a damaged checkpoint", "ours": silent, "bar": 0, "met": silent == 0},
        {
            "figure": "damages after which the step can be saved again",
            "ours": again,
            "bar": count,
            "met": again == count,
        },
    ]


def row_of_deaths(where: str, deaths: list[Iterator[int]]) -> dict[str, Any]:
    """States that are neither of the last two commits, after deaths at each of some calls."""
    wrong: list[str] = []
    count, both = 0, True
    for each in deaths:
        steps: list[int] = []
        try:
            steps.extend(each)
        except Exception as error:  # noqa: BLE001  # whatever a reader meets there is a state that it cannot use
            wrong.append(f"{type(error).__name__}: {error}")
        count += len(steps)
        both &= steps == sorted(steps) and {*steps} == {1, 2}  # step 1 up to a call, step 2 from then on
    return {
        "figure": f"a save dies at {where}: states that are no commit",
        "ours": len(wrong),
        "bar": 0,
        "met": not wrong and both,
        "deaths": count,
        "wrong": wrong,
    }

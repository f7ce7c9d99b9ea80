"""How a step is committed, in phases that each process takes on its own.

First `write_payload` on every process; when all are done, `commit` on one; then `verify_written` on every process, and
only when all found what they wrote may older steps go. None of them waits for another process, so a thread beside
training may run them: `committing` and `reading_back` give them as tasks, and `save` waits for these.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from conf.exits import DataError
from trainer.backend import Backend
from trainer.checkpoint.committed import (
    COMMIT,
    FORMAT,
    MANIFEST,
    QUARANTINE,
    BrokenError,
    Part,
    digest_of,
    find,
    opened,
    read_commit,
    sealed,
    step_name,
)
from trainer.checkpoint.parts import Holding, holding
from trainer.checkpoint.payload import write_tensors
from trainer.checkpoint.quarantine import quarantine
from trainer.checkpoint.store import Patient, Store, open_store, patient
from trainer.checkpoint.together import INCIDENTS, Task, Tasks, Together
from trainer.sharded import Parted

Index = dict[str, Any]  # what one process wrote: files with bytes and sha256, parts, and tensors as a whole

_RANDOM_BITS = 48  # of an attempt's name: `Backend.agree` keeps whole numbers of up to 53


def new_attempt(number: int, backend: Backend) -> str:
    """A folder name that no other try at any step has, whatever was lost, the same on every process; all call it."""
    drawn = secrets.randbits(_RANDOM_BITS) if backend.processes.rank == 0 else 0
    (agreed,) = backend.agree([drawn])
    return f"attempt-{number:04d}-{int(agreed):0{_RANDOM_BITS // 4}x}"


def write_payload(store: Store, step: int, attempt: str, rank: int, held: Holding) -> Index:
    """Write what one process holds, then an index of it, which is returned: files, parts, and tensors as a whole.

    Raises OSError where the store does not take it.
    """
    payload, file = store.within(f"{step_name(step)}/{attempt}"), f"rank-{rank:05d}.safetensors"
    stored: dict[str, Tensor] = {}
    parts: list[Part] = []
    for part in held.parts:
        key = f"{part.tensor}#{len(parts)}" if part.tensor in stored else part.tensor
        stored[key] = part.values
        parts.append(Part(part.tensor, file, key, part.offset, list(part.values.shape)))
    entry = write_tensors(payload, file, stored)
    index = {"files": {file: entry}, "tensors": held.tensors, "parts": [asdict(part) for part in parts]}
    payload.create(_index_name(rank), json.dumps(index).encode())
    return index


def commit(store: Store, step: int, attempt: str, processes: int, state: dict[str, Any]) -> None:
    """Make one manifest of what so many processes wrote, then the COMMIT, after which the step exists.

    Raises OSError where the store does not take it, or has committed the step before; DataError where what was written
    is no whole checkpoint.
    """
    folder = store.within(step_name(step))
    payload = folder.within(attempt)
    indexes = [json.loads(payload.read(_index_name(rank))) for rank in range(processes)]
    manifest = {
        "format": FORMAT,
        "step": step,
        "tensors": indexes[0]["tensors"],
        "parts": [part for index in indexes for part in index["parts"]],
        "files": {name: entry for index in indexes for name, entry in index["files"].items()},
        "state": state,
    }
    _refuse_gaps(manifest, f"{payload}")
    data = json.dumps(manifest).encode()
    payload.create(MANIFEST, data)
    for rank in range(processes):
        payload.delete(_index_name(rank))
    create_commit(folder, attempt, data)


def create_commit(folder: Store, attempt: str, manifest: bytes) -> None:
    """Commit the attempt of a step's folder, which has this manifest. Raises OSError as `commit` does.

    A COMMIT that is there for the same manifest does as well, whichever attempt it names: an answer may get lost on its
    way, and then the question too whether it was one.
    """
    digest = hashlib.sha256(manifest).hexdigest()
    said = sealed({"format": FORMAT, "attempt": attempt, "manifest_sha256": digest, "time": time.time()})
    try:
        folder.create(COMMIT, said)
    except OSError:
        if not _is_committed_as(folder, digest):
            raise


def _is_committed_as(folder: Store, digest: str) -> bool:
    """Whether a step's folder has a COMMIT, which is not void, for the manifest of this sha256."""
    there = _read_if_there(folder, COMMIT)
    try:
        commit = {} if there is None else read_commit(there, COMMIT, 0)
    except BrokenError:
        return False
    return commit.get("manifest_sha256") == digest and not folder.size(f"{commit['attempt']}/{QUARANTINE}")


def _refuse_gaps(manifest: dict[str, Any], where: str) -> None:
    """Raise DataError where the parts of a tensor are not all of it."""
    stored = dict.fromkeys(manifest["tensors"], 0)
    for part in manifest["parts"]:
        stored[part["tensor"]] += math.prod(part["shape"])
    for name, whole in manifest["tensors"].items():
        if stored[name] != math.prod(whole["shape"]):
            raise DataError(f"{where} has {stored[name]} of {math.prod(whole['shape'])} values of {name}")


def verify_written(store: Store, step: int, attempt: str, index: Index) -> None:
    """Read back from storage what one process wrote. Raises BrokenError where it is not that; OSError."""
    payload = store.within(f"{step_name(step)}/{attempt}")
    for name, entry in index["files"].items():
        payload.forget(name)
        if payload.size(name) != entry["bytes"] or digest_of(payload, name, entry["bytes"]) != entry["sha256"]:
            raise BrokenError(f"{payload}/{name} does not read back as it was written", step)


def refuse_broken(store: Store, step: int) -> None:
    """Read a committed step back whole; one that is broken is put into quarantine. Raises BrokenError then.

    Where storage does not answer, what was committed stands. Raises OSError or DataError where a step that is broken
    cannot be put aside.
    """
    try:
        opened(patient(store), step).verify()
    except BrokenError as error:
        quarantine(patient(store), step, error.reason)
        raise
    except DataError:
        return


def discard(store: Store, step: int, attempt: str) -> None:
    """Remove what a failed attempt wrote: it would keep a full disk full. Raises OSError, DataError.

    Where its COMMIT is there after all, and only the answer to it got lost, it stays.
    """
    if attempt.encode() in (_read_if_there(store.within(step_name(step)), COMMIT) or b""):
        return
    for name in store.names(f"{step_name(step)}/{attempt}"):
        store.delete(name)


def committing(first: bool, write: Callable[[], Index], commit: Task) -> Generator[Task | None, None, Index]:
    """The tasks of a save until the step exists, as `Together` does them: every process writes, and the first commits.

    Gives what this process wrote. Raises what kept the step from being committed.
    """
    index: Index = {}

    def write_own() -> None:
        index.update(write())

    yield write_own
    yield commit if first else None
    return index


def reading_back(
    store: Store, step: int, attempt: str, index: Index, first: bool
) -> Generator[Task | None, None, Exception | None]:
    """The tasks after these: every process reads back what it wrote.

    Gives what kept a step from being read back that stands all the same; None: it is verified. Raises BrokenError once
    a step that is not what was written is in quarantine, and what kept it from getting there.
    """

    def verify() -> None:
        if first:
            found = find(store, step)  # which holds the manifest against the COMMIT
            if found is not None and found.attempt != attempt:
                found.verify()  # that one counts, see `create_commit`
        verify_written(store, step, attempt, index)

    try:
        yield verify
    except INCIDENTS as error:
        yield functools.partial(refuse_broken, store, step) if first else None
        return error
    return None


def save(
    place: Store | Path | str,
    step: int,
    attempt: str,
    tensors: Mapping[str, Tensor | Parted],
    state: dict[str, Any],
    backend: Backend,
) -> None:
    """Write, commit and verify one step; every process calls it. All must see the same place.

    Args:
        attempt: a folder name that no earlier try at this step had, such as `new_attempt` gives.
        tensors: name -> tensor, sharded or not; the same names on every process.
        state: what else a restart needs, as JSON.

    Raises:
        DataError: on every process when one of them could not write, or what was committed does not read back; a step
            that is broken is then in quarantine. Earlier steps are untouched.
    """
    store, rank, size = open_store(place), backend.processes.rank, backend.processes.size

    def write() -> Index:
        return write_payload(store, step, attempt, rank, holding(tensors, first=rank == 0))

    def tasks() -> Tasks:
        where = f"{store}/{step_name(step)}/{attempt}"
        try:
            index = yield from committing(rank == 0, write, lambda: commit(store, step, attempt, size, state))
            unread = yield from reading_back(store, step, attempt, index, rank == 0)
        except INCIDENTS as error:
            raise DataError(f"{where} could not be written: {error}") from error
        if unread is not None:
            raise DataError(f"{where} could not be read back: {unread}") from unread

    work = Together()
    work.begin(tasks())
    while work.busy:
        work.wait()
        work.agreed(backend.agree(work.flags(rank)), size)


def _index_name(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def _read_if_there(store: Store, name: str) -> bytes | None:
    try:
        return Patient(store).read(name)
    except FileNotFoundError:
        return None

"""A committed step copied to a second place, in the phases of `trainer.checkpoint.saving`."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.checkpoint.committed import MANIFEST, PIECE, BrokenError, Committed, opened, step_name
from trainer.checkpoint.payload import Digest
from trainer.checkpoint.saving import Index, create_commit
from trainer.checkpoint.store import Store, patient


def copy_payload(source: Store, target: Store, step: int, attempt: str, rank: int, processes: int) -> Index:
    """Copy a process's share of the files of a step, whoever wrote them; returns them, with bytes and sha256.

    Raises OSError where the target does not take it; BrokenError where the source is not what was committed; DataError
    where that does not answer.
    """
    checkpoint = opened(patient(source), step)
    files = sorted(checkpoint.files)[rank::processes]
    for name in files:
        passed = Digest()
        target.write(f"{step_name(step)}/{attempt}/{name}", passed.of(_pieces(checkpoint, name)))
        if passed.entry != checkpoint.files[name]:
            raise BrokenError(f"{checkpoint.payload}/{name} does not have the sha256 of the manifest (corrupt)", step)
    return {"files": {name: checkpoint.files[name] for name in files}}


def copy_commit(source: Store, target: Store, step: int, attempt: str) -> None:
    """Copy the manifest, and commit. Raises as `copy_payload` does."""
    manifest = opened(patient(source), step).payload.read(MANIFEST)
    folder = target.within(step_name(step))
    folder.create(f"{attempt}/{MANIFEST}", manifest)
    create_commit(folder, attempt, manifest)


def _pieces(checkpoint: Committed, name: str) -> Iterator[bytes]:
    for begin in range(0, checkpoint.files[name]["bytes"], PIECE):
        yield checkpoint.payload.read(name, begin, PIECE)

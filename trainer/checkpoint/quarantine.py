"""A committed step that turns out broken is put aside, and stays readable for whoever looks into it.

Nothing is renamed: `<attempt>/QUARANTINE` is created with the reason and a copy of the COMMIT, which makes that void;
then the COMMIT is removed, so that the step can be committed again by another attempt.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

from trainer.checkpoint.committed import (
    COMMIT,
    MANIFEST,
    QUARANTINE,
    BrokenError,
    files_by_step,
    is_committed,
    read_commit,
    step_name,
)
from trainer.checkpoint.store import Patient


def quarantine(store: Patient, step: int, reason: str) -> None:
    """Put a committed step aside; one process calls it. Raises OSError or DataError where storage does not take it."""
    folder = store.within(step_name(step))
    commit = folder.read(COMMIT)
    document = {"format": 1, "reason": reason, "time": time.time(), "commit": commit.hex()}
    with suppress(FileExistsError):  # by an attempt that died before it removed the COMMIT
        folder.create(f"{_attempt_of(store, step, commit)}/{QUARANTINE}", json.dumps(document).encode())
    folder.delete(COMMIT)


def finish(store: Patient) -> None:
    """Remove each COMMIT that is void: whoever put its step aside died before it could."""
    for step, files in files_by_step(store).items():
        if COMMIT in files and not is_committed(store, step, files):
            store.within(step_name(step)).delete(COMMIT)


def _attempt_of(store: Patient, step: int, commit: bytes) -> str:
    """The attempt that a COMMIT names; where it is not to be read, the last that has a manifest, and else none's."""
    files = files_by_step(store)[step]
    try:
        named = str(read_commit(commit, COMMIT, step)["attempt"])
    except BrokenError:
        named = ""
    if any(name.startswith(f"{named}/") for name in files):
        return named
    return max((name.split("/")[0] for name in files if name.endswith(f"/{MANIFEST}")), default="attempt-unknown")

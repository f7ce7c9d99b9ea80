"""Whether the processes of a run see the same folder, before anything relies on it."""

from __future__ import annotations

import secrets
import time

from conf.exits import ConfigError, DataError
from trainer.backend import Backend
from trainer.checkpoint.store import Folder, Store

_LONGEST = 90.0  # seconds: a network file system may show what another host wrote a minute later
_BITS = 48


def meet(store: Store, backend: Backend) -> None:
    """Have the first process leave a marker in a store and the others look for it; every process calls it.

    Raises ConfigError on every process where one does not see it, or where a second file can take its place: then
    nothing would keep two attempts at a step apart. DataError where it cannot be written.
    """
    if backend.processes.size == 1 and isinstance(store, Folder):
        return  # there is nobody to meet, and local file systems are known to create
    rank = backend.processes.rank
    (drawn,) = backend.agree([secrets.randbits(_BITS) if rank == 0 else 0])
    marker, problem, failure = f"marker-{int(drawn):x}", 0, None
    if rank == 0:
        try:
            store.create(marker, b"first")
            try:
                store.create(marker, b"second")
                problem = 1
            except FileExistsError:
                pass
        except OSError as error:
            problem, failure = 2, error
    (problem,) = map(int, backend.agree([problem]))
    if problem == 2:
        raise DataError(f"{store} cannot be written ({failure or 'says the first process'})") from failure
    (blind,) = map(int, backend.agree([rank != 0 and not _appears(store, marker)]))
    if rank == 0:
        store.delete(marker)
    if problem == 1:
        raise ConfigError(f"{store} replaces a file that is there where it is told not to: keep checkpoints elsewhere")
    if blind:
        raise ConfigError(
            f"{blind} of {backend.processes.size} processes do not see what the first one writes to {store}: set "
            "checkpoint.directory to a bucket (gs://..., s3://...) or a folder on a disk that all hosts share"
        )


def _appears(store: Store, name: str) -> bool:
    deadline, wait = time.monotonic() + _LONGEST, 0.05
    while store.size(name) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(wait)
        wait = min(2 * wait, 2.0)
    return True

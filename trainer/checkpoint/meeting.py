"""Whether the processes of a run see the same folder, before anything relies on it."""

from __future__ import annotations

import secrets
import time

from conf.exits import ConfigError
from trainer.backend import Backend
from trainer.checkpoint.agreement import on_all
from trainer.checkpoint.store import Folder, Store, patient

_LONGEST = 90.0  # seconds: a network file system may show what another host wrote a minute later
_BITS = 48


def meet(store: Store, backend: Backend) -> None:
    """Have the first process leave a marker in a store and the others look for it; every process calls it.

    Raises ConfigError on every process where one does not see it, or where a second file can take its place: then
    nothing would keep two attempts at a step apart. DataError where it cannot be written.
    """
    if backend.processes.size == 1 and isinstance(store, Folder):
        return  # there is nobody to meet, and a file system of this machine is known to create
    rank = backend.processes.rank
    (drawn,) = backend.agree([secrets.randbits(_BITS) if rank == 0 else 0])
    marker = f"marker-{int(drawn):x}"
    on_all(backend, lambda: _leave(store, marker) if rank == 0 else None)
    seen = on_all(backend, lambda: rank == 0 or _appears(patient(store), marker))
    (blind,) = backend.agree([not seen])
    on_all(backend, lambda: store.delete(marker) if rank == 0 else None)
    if blind:
        raise ConfigError(
            f"{blind:.0f} of {backend.processes.size} processes do not see what the first one writes to {store}: set "
            "checkpoint.directory to a bucket (gs://..., s3://...) or to a folder on a disk that all hosts share"
        )


def _leave(store: Store, marker: str) -> None:
    store.create(marker, b"the first")
    try:
        store.create(marker, b"the second")
    except FileExistsError:
        return
    store.delete(marker)
    raise ConfigError(
        f"{store} replaces a file where it is told to create one only: it cannot keep two attempts at a step apart; "
        "set checkpoint.directory to other storage"
    )


def _appears(store: Store, name: str) -> bool:
    deadline, wait = time.monotonic() + _LONGEST, 0.05
    while store.size(name) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(wait)
        wait = min(2 * wait, 2.0)
    return True

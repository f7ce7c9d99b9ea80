"""One job at a time in a folder. Knows nothing of what the job does there.

The lock is the kernel's: it ends with the process that holds it, however that ends, and leaves no file behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.exits import ConfigError


@contextmanager
def locked(folder: Path, key: str) -> Iterator[None]:
    """Hold the folder, which is made where it is missing; `key` is the configuration key that named it.

    Raises ConfigError where another process holds it, or it cannot be made.
    """
    descriptor = _lock(folder, key)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, key: str) -> int:
    """An open, locked descriptor of the folder."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(f"{key}: {folder} cannot be made ({error.strerror}): choose another folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder that we opened may have been renamed or removed before we locked it.
            if folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(f"another process is at work on {folder}: wait for it, or choose another {key}") from None
        os.close(descriptor)

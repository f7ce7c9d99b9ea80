"""Files on this host's disk, named by the sha256 of what they hold: at most so many bytes, shared by all processes.

Knows nothing of shards or where the bytes come from. A name is a promise that is checked at each reading, so two files
can never be mistaken for each other, and a disk that forgets is noticed. What cannot be written is counted and done
without: a cache may be slow, never wrong, and never the end of a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from pathlib import Path

_KEPT_EVIDENCE = 16  # quarantined files, the newest: enough to look at, too few to fill a disk
_ABANDONED_SECONDS = 3600.0  # after which a file that was never finished belongs to a process that died


class DiskCache:
    """At most `limit` bytes in `folder`; the least recently used go first. Between two looks at the folder each process
    may write a tenth more.

    Attributes: `quarantined` (files set aside since they were not what their names say), `failed_writes`.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.quarantined = self.failed_writes = 0
        self._until_look = 0  # bytes this process may still write before it looks at what all have written

    def get(self, sha256: str) -> bytes | None:
        """The bytes of this digest, None where they are not here (any more)."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
        except OSError:  # never written, or evicted by another process
            return None
        with contextlib.suppress(OSError):  # a folder that is only read from is of use, too
            os.utime(path)  # used: the last to be evicted
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        self.quarantine(data, sha256)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, sha256: str, data: bytes) -> None:
        """Keep bytes whose digest the caller has checked."""
        if len(data) > self.limit or not self._write(self._path(sha256), data):
            return
        self._until_look -= len(data)
        if self._until_look < 0:
            self._evict()
            self._until_look = self.limit // 10

    def quarantine(self, data: bytes, sha256: str) -> None:
        """Set bytes aside that should have had this digest, for people to look at."""
        self.quarantined += 1
        folder = self.folder / "quarantine"
        if self._write(folder / f"{sha256}-{time.time_ns()}", data):
            for old in sorted(folder.iterdir(), key=lambda path: path.name.rsplit("-", 1)[-1])[:-_KEPT_EVIDENCE]:
                with contextlib.suppress(OSError):
                    old.unlink()

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _write(self, path: Path, data: bytes) -> bool:
        """Write a file that is either absent or whole; says whether it is there."""
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError:
            self.failed_writes += 1
            with contextlib.suppress(OSError):
                partial.unlink()
            return False
        return True

    def _evict(self) -> None:
        """Bring the folder down to 90 % of the limit. Files vanish meanwhile: other processes evict too."""
        files = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                state = path.stat()
                if not path.name.endswith(".partial"):
                    files.append((state.st_mtime_ns, state.st_size, path))
                elif time.time() - state.st_mtime > _ABANDONED_SECONDS:  # else its writer may be at work
                    path.unlink()
        excess = sum(size for _, size, _ in files) - self.limit
        if excess <= 0:
            return
        excess += self.limit // 10
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            excess -= size

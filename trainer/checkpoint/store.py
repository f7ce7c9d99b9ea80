"""Where checkpoints lie: a folder of files that are each written once, on a disk or in a bucket.

Nothing is renamed or written again, since object stores can do neither. Two implementations, and whoever uses one need
not know which: what goes wrong on the way to storage is an OSError in both.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.spec import AbstractBufferedFile

from conf.exits import ConfigError, DataError
from conf.schema import BUCKETS
from data_pipeline.durable import sync
from data_pipeline.files import filesystem, is_final, redacted, said, split

Answer = TypeVar("Answer")

_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before the second try; doubled each time
_BLOCK = 16 * 2**20  # bytes of an upload on their way at once
_CHANCE = random.Random()  # of its own, so that waiting does not move the random numbers of a run

PARTIAL = ".partial"  # ends the name of a file that will be another one once it is whole
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Store(Protocol):
    """A folder of files, each written once. Names are relative to it, with / between folders."""

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a new file, which is durable when this returns; a death meanwhile may leave a part of it."""

    def create(self, name: str, data: bytes) -> None:
        """Write a file that appears whole or not at all. Raises FileExistsError where there is one of that name."""

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        """The bytes from `begin` on, fewer where the file ends before. Raises FileNotFoundError."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def names(self, folder: str = "") -> list[str]:
        """Every file in a folder and the folders below it, sorted; none where there is no such folder."""

    def delete(self, name: str) -> None:
        """Remove a file, or find it gone."""

    def forget(self, name: str) -> None:
        """Have a file read from where it is stored, not from what this host still has of it in memory."""

    def within(self, folder: str) -> Store:
        """A folder below this one."""


def open_store(place: Store | Path | str) -> Store:
    """The store at a path or URL. Raises ConfigError where it is none that a checkpoint can be kept in."""
    if not isinstance(place, (str, Path)):
        return place
    if isinstance(place, Path):
        return Folder(place)
    protocol, path = split(place)
    if protocol is None:
        return Folder(Path(path))
    if protocol not in BUCKETS:
        raise ConfigError(
            f"{redacted(place)} cannot keep checkpoints, as {protocol}:// has no way to create a file only where there "
            f"is none: use a folder, or a URL that begins with {', '.join(f'{each}://' for each in ('gs', 's3'))}"
        )
    # Listings that were kept would hide what other processes write.
    return Bucket(filesystem(protocol, use_listings_cache=False), f"{protocol}://{path.rstrip('/')}")


class Folder:
    """A folder of this machine's file systems, of which many processes may see the same."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        path = self.path / name
        _make(path.parent)
        with path.open("xb", buffering=0) as file:
            try:
                for chunk in chunks:
                    left = memoryview(chunk).cast("B")
                    while left:  # one call writes at most 2 GiB
                        left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError:
                path.unlink()  # half of it would keep a full disk full, for the ledger too
                raise
        sync(path.parent)

    def create(self, name: str, data: bytes) -> None:
        path = self.path / name
        _make(path.parent)
        # Written under another name and then linked: it appears whole or not at all, whatever happens meanwhile, and a
        # link, unlike a rename, never replaces a file that is there.
        partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}{PARTIAL}")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(partial, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _create_exclusively(path, data)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        with (self.path / name).open("rb") as file:
            file.seek(begin)
            return file.read(-1 if length is None else length)

    def size(self, name: str) -> int | None:
        try:
            return (self.path / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str = "") -> list[str]:
        def told(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # which another process may just have removed
                raise error

        found = os.walk(self.path / folder, onerror=told)
        paths = (Path(root, file) for root, _, files in found for file in files)
        return sorted(path.relative_to(self.path).as_posix() for path in paths)

    def delete(self, name: str) -> None:
        path = self.path / name
        path.unlink(missing_ok=True)
        for folder in itertools.takewhile(lambda parent: parent != self.path, path.parents):
            try:
                folder.rmdir()
            except OSError:  # it holds more, or is gone
                break

    def forget(self, name: str) -> None:
        descriptor = os.open(self.path / name, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def within(self, folder: str) -> Folder:
        return Folder(self.path / folder)


def _create_exclusively(path: Path, data: bytes) -> None:
    """Where a file system knows no links, such as gcsfuse, which shows a file to others only once it is closed."""
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _make(folder: Path) -> None:
    """Make a folder and those above it, and put their names on the disk."""
    missing = list(itertools.takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync(made.parent)


class Bucket:
    """A folder of an object store, through fsspec."""

    def __init__(self, storage: Any, url: str) -> None:
        self._storage, self._url = storage, url

    def __str__(self) -> str:
        return redacted(self._url)

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        with _told():
            file = self._storage.open(f"{self._url}/{name}", "wb", block_size=_BLOCK)
        try:
            for chunk in chunks:  # not within `_told`: what these are read from may fail, too
                with _told():
                    file.write(chunk)
            with _told():
                file.close()
        except BaseException:
            if isinstance(file, AbstractBufferedFile):
                file.closed = True  # closing it, as its end of life does, would make what came so far an object
                with _told():
                    file.discard()
            raise

    def create(self, name: str, data: bytes) -> None:
        with _told():
            self._storage.pipe_file(f"{self._url}/{name}", data, mode="create")

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        with _told():
            bounds = {} if (begin, length) == (0, None) else {"start": begin, "end": length and begin + length}
            data: bytes = self._storage.cat_file(f"{self._url}/{name}", **bounds)
            return data

    def size(self, name: str) -> int | None:
        try:
            with _told():
                size: int = self._storage.info(f"{self._url}/{name}")["size"]
                return size
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> list[str]:
        with _told():
            root = self._storage._strip_protocol(self._url) + "/"
            below = f"{root}{folder.rstrip('/')}/" if folder else root
            try:
                found = self._storage.find(below)
            except FileNotFoundError:  # not even the bucket is there
                return []
            return sorted(name.removeprefix(root) for name in found if name.startswith(below))

    def delete(self, name: str) -> None:
        try:
            with _told():
                self._storage.rm_file(f"{self._url}/{name}")
        except FileNotFoundError:
            pass

    def forget(self, name: str) -> None:
        pass  # nothing of it is kept

    def within(self, folder: str) -> Bucket:
        return Bucket(self._storage, f"{self._url}/{folder}")


@contextmanager
def _told() -> Iterator[None]:
    """Around a call of a storage library, which raises what it likes: raises OSError."""
    try:
        yield
    except (OSError, ConfigError):
        raise
    except Exception as error:
        told = OSError(said(error))
        told.code = getattr(error, "status", None) or getattr(error, "code", None)  # type: ignore[attr-defined]
        raise told from error


class Patient:
    """A store whose reads are tried again, with pauses that grow, while storage does not answer.

    In the end they raise DataError: that nothing can be said of a file is another thing than that it is gone or broken.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __str__(self) -> str:
        return str(self._store)

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        self._store.write(name, chunks)

    def create(self, name: str, data: bytes) -> None:
        self._store.create(name, data)

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        return self._insist(name, lambda: self._store.read(name, begin, length))

    def size(self, name: str) -> int | None:
        return self._insist(name, lambda: self._store.size(name))

    def names(self, folder: str = "") -> list[str]:
        return self._insist(folder, lambda: self._store.names(folder))

    def delete(self, name: str) -> None:
        self._insist(name, lambda: self._store.delete(name))

    def forget(self, name: str) -> None:
        self._insist(name, lambda: self._store.forget(name))

    def within(self, folder: str) -> Patient:
        return Patient(self._store.within(folder))

    def _insist(self, name: str, ask: Callable[[], Answer]) -> Answer:
        wait = _FIRST_WAIT
        for tries in itertools.count(1):
            try:
                return ask()
            except FileNotFoundError:
                raise
            except OSError as error:
                if is_final(error) or tries == _TRIES:
                    count = "1 try" if tries == 1 else f"{tries} tries"
                    raise DataError(
                        f"{self._store}/{name} cannot be reached ({said(error)}; {count}): start again once the "
                        "storage answers"
                    ) from error
            _sleep(wait * _CHANCE.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT)
        raise AssertionError("the last try returns or raises")


def patient(place: Store | Path | str) -> Patient:
    """The store at a place, to read from."""
    store = open_store(place)
    return store if isinstance(store, Patient) else Patient(store)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)

"""Storage that dies, tears, answers late or not at all, as a test tells it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from trainer.checkpoint import store as storage
from trainer.checkpoint.store import Store


class Died(BaseException):
    """The process ends here, without a chance to clean up."""


class FaultyStore:
    """A store that ends the process at one of its writing calls, or is silent for the next so many reads.

    calls    writing calls so far: each chunk of a file, and each create and delete twice, before and after it happened
    die_at   the number of the call at which the process ends; a chunk is then written by half
    silent   reads that get no answer
    """

    def __init__(self, store: Store, die_at: int | None = None, silent: int = 0) -> None:
        self._store, self.die_at, self.silent = store, die_at, silent
        self.calls = 0
        self._root = self

    def __str__(self) -> str:
        return str(self._store)

    def within(self, folder: str) -> FaultyStore:
        below = FaultyStore(self._store.within(folder))
        below._root = self._root
        return below

    def _dies(self) -> bool:
        self._root.calls += 1
        return self._root.calls == self._root.die_at

    def _call(self) -> None:
        if self._dies():
            raise Died

    def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        def dying() -> Iterator[bytes | memoryview]:
            for chunk in chunks:
                if self._dies():
                    yield chunk[: len(chunk) // 2]
                    raise Died
                yield chunk
            self._call()

        self._store.write(name, dying())
        self._call()

    def create(self, name: str, data: bytes) -> None:
        self._call()
        self._store.create(name, data)
        self._call()

    def delete(self, name: str) -> None:
        self._call()
        self._store.delete(name)
        self._call()

    def _answer(self) -> None:
        if self._root.silent > 0:
            self._root.silent -= 1
            raise OSError(errno.EIO, "503 Service Unavailable")

    def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
        self._answer()
        return self._store.read(name, begin, length)

    def size(self, name: str) -> int | None:
        self._answer()
        return self._store.size(name)

    def names(self, folder: str = "") -> list[str]:
        self._answer()
        return self._store.names(folder)

    def forget(self, name: str) -> None:
        self._store.forget(name)


class Requests:
    """What an object store is asked, counted; one of them goes wrong.

    at    the number of the request that does
    how   "before": nothing happens; "after": it happens, and its answer is lost
    """

    def __init__(self) -> None:
        self.count, self.at, self.how = 0, -1, "before"
        self.error: Callable[[], BaseException] = Died

    @contextmanager
    def one(self) -> Iterator[None]:
        self.count += 1
        wrong = self.count == self.at
        if wrong and self.how == "before":
            raise self.error()
        yield
        if wrong:
            raise self.error()


class HttpError(Exception):
    """As storage libraries raise it: no OSError."""

    code = 503


class Shelf(AbstractFileSystem):
    """An object store in memory with the manners of a real one: an object appears whole once its upload is complete,
    is created only where there is none if asked so, and is neither renamed nor written again."""

    protocol = "shelf"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.requests = Requests()

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **kwargs: Any) -> Upload:
        assert mode == "wb", "nothing here reads through a file"
        return Upload(self, path, mode, block_size or 2**20)

    def put(self, path: str, data: bytes) -> None:
        assert path not in self.objects, f"{path} is written a second time"
        self.objects[path] = data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        assert mode == "create"
        with self.requests.one():
            if path in self.objects:
                raise FileExistsError(path)
            self.put(path, bytes(value))

    def _get(self, path: str) -> bytes:
        path = self._strip_protocol(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        with self.requests.one():
            return self._get(path)[start:end]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        with self.requests.one():
            return {"name": path, "size": len(self._get(path)), "type": "file"}

    def find(self, path: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        with self.requests.one():
            return sorted(name for name in self.objects if name.startswith(self._strip_protocol(path)))

    def rm_file(self, path: str) -> None:
        with self.requests.one():
            self._get(path)
            del self.objects[self._strip_protocol(path)]

    def _rm(self, path: str) -> None:
        raise AssertionError("one by one")

    def mv(self, *paths: str, **kwargs: Any) -> None:
        raise AssertionError("an object store has no rename")

    cp_file = mv


class Upload(AbstractBufferedFile):
    """An upload in pieces; what is not completed never becomes an object."""

    def _initiate_upload(self) -> None:
        self.pieces: list[bytes] = []

    def _upload_chunk(self, final: bool = False) -> bool:
        with self.fs.requests.one():
            self.pieces.append(self.buffer.getvalue())
            if final:
                self.fs.put(self.path, b"".join(self.pieces))
        return True

    def discard(self) -> None:
        self.pieces = []


@contextmanager
def mortal_disk(die_at: int, loses: bool) -> Iterator[list[str]]:
    """While entered, the process ends at one of the calls that change what is on a local disk; gives those so far.

    A write is then cut in half. Where the machine `loses` power with it, bytes that were not put on the disk are gone.
    """
    calls: list[str] = []
    unsynced: set[Path] = set()
    real_open, real_fsync, real_link = Path.open, storage.os.fsync, storage.os.link
    real = {name: getattr(Path, name) for name in ("mkdir", "unlink", "rmdir")}

    def dies(what: str) -> bool:
        calls.append(what)
        return len(calls) == die_at

    def died() -> Died:
        if loses:
            for path in unsynced:
                if path.exists():
                    storage.os.truncate(path, path.stat().st_size // 2)
        return Died()

    def fsync(descriptor: int) -> None:
        path = Path(storage.os.readlink(f"/proc/self/fd/{descriptor}"))
        if dies(f"fsync {path.name}"):
            raise died()
        real_fsync(descriptor)
        unsynced.discard(path)

    def link(source: Path, target: Path) -> None:
        if dies(f"link {target.name}"):
            raise died()
        real_link(source, target)

    class Writing:
        def __init__(self, file: Any, path: Path) -> None:
            self._file, self._path = file, path

        def __enter__(self) -> Writing:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes | memoryview) -> int:
            unsynced.add(self._path)
            if dies(f"write {self._path.name}"):
                self._file.write(data[: len(data) // 2])
                self._file.flush()
                raise died()
            written: int = self._file.write(data)
            return written

    def opening(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "xb":
            return real_open(path, mode, *arguments, **options)
        if dies(f"open {path.name}"):
            raise died()
        return Writing(real_open(path, mode, *arguments, **options), path.resolve())

    def changing(name: str) -> Callable[..., None]:
        def change(path: Path, *arguments: Any, **options: Any) -> None:
            if dies(f"{name} {path.name}"):
                raise died()
            real[name](path, *arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opening)
        patch.setattr(storage.os, "fsync", fsync)
        patch.setattr(storage.os, "link", link)
        for name in real:
            patch.setattr(Path, name, changing(name))
        yield calls

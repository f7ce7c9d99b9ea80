"""The files of a folder behind any path or URL: fetched again when storage fails, verified, kept on this host's disk.

Knows nothing of what the files hold. Nothing is returned that is shorter, longer or other than what was asked for:
storage that truncates, stalls, answers with errors or flips bits costs time, and in the end an error that says where.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar, cast

import fsspec

from conf.exits import ConfigError, DataError
from data_pipeline.disk_cache import DiskCache

_TRIES = 6
_LOCAL_TRIES = 2  # a local disk that lies, lies again
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds before the second try; doubled each time
_STALL_SECONDS = 30.0  # without a byte, after which an HTTP server is left
_AT_ONCE = 16  # requests on their way together

# What may stand before ://, and the extra that brings it. Everything else is refused: chains of protocols hide where
# bytes come from, and WebDataset's `pipe:` runs a shell.
PROTOCOLS = {
    "file": None, "local": None, "memory": None, "http": "http", "https": "http", "gs": "gcs", "gcs": "gcs", "s3": "s3",
    "s3a": "s3", "hf": "hf",
}  # fmt: skip
_HTTP = ("http", "https")
_SECRET = re.compile(r"(?i)(^|[._-])(secret|password|passwd|token|(access|api|secret)[_-]?key)$")
_HIDDEN = "..."  # in place of what is secret
Told = TypeVar("Told")
_CHANCE = random.Random()  # of its own, so that waiting does not move the random numbers of a run


class Range(NamedTuple):
    """A run of bytes of a file. Without bounds, the whole file; without a digest, unverified.

    name     of a file of the folder, or a path or URL of its own
    what     what people call it, for messages
    remedy   what to do if it cannot be had
    """

    name: str
    start: int | None
    end: int | None
    sha256: str | None
    what: str = ""
    remedy: str = ""


@dataclass
class Counts:
    """What reading has suffered and fetched in this process."""

    retries: int = 0  # requests that failed
    refetched: int = 0  # answers that were not what was asked for
    quarantined: int = 0  # bytes set aside: those of a source that stay wrong, and those a disk forgot
    bytes_fetched: int = 0
    cache_hits: int = 0
    failed_cache_writes: int = 0


class MissingError(DataError):
    """The storage says that there is no such file."""


@dataclass
class Files:
    """The files of a folder. `local` where it is on this machine's file systems; then no cache is used.

    query   what stands behind the ? of every URL of the folder, where a server asks for a token
    """

    url: str = field(repr=False)  # may hold a password
    local: bool
    cache: DiskCache | None = None
    query: str = field(default="", repr=False)
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def open(cls, url: str, cache: DiskCache | None = None) -> tuple[Files, str]:
        """The files of the folder that a file lies in, and the file's name.

        Raises ConfigError where the URL is none that may be read, or the package for it is not installed.
        """
        protocol, path = split(url)
        folder, _, name = path.rpartition("/")
        if protocol is None:
            return cls(folder or ("/" if path.startswith("/") else "."), True), name
        query = ""
        if protocol in _HTTP:
            path, _, query = path.partition("?")
            folder, _, name = path.rpartition("/")
        filesystem(protocol)  # that it can be had is known before anything starts
        return cls(f"{protocol}://{folder}", False, cache, query), name

    def read(self, name: str, sha256: str | None = None, remedy: str = "") -> bytes:
        """A whole file. Raises DataError where it is not to be had, or is not what its digest says."""
        return self.read_ranges([Range(name, None, None, sha256, remedy=remedy)])[0]

    def find(self, name: str, sha256: str | None = None, remedy: str = "") -> bytes | None:
        """A whole file as `read` gives it; None where the storage says that there is none."""
        try:
            return self.read(name, sha256, remedy)
        except MissingError:
            return None

    def path(self, name: str, sha256: str) -> Path | None:
        """Where a file with this digest lies on this machine, read through but not kept in memory; None where it has
        to be fetched, is not there, or is another."""
        protocol, path = self._place(name)
        try:
            if protocol is None:
                with open(path, "rb") as file:
                    return Path(path) if hashlib.file_digest(file, "sha256").hexdigest() == sha256 else None
        except OSError:
            pass  # whoever reads it then is told what is wrong
        return None

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, fetched together and verified. Raises DataError."""
        found: dict[int, bytes] = {}
        for number, wanted in enumerate(ranges):
            if (kept := self._kept(wanted)) is not None:
                found[number] = kept
        pending = {number: wanted for number, wanted in enumerate(ranges) if number not in found}
        wait, tries = _FIRST_WAIT, 0
        while pending:
            tries += 1
            answers = self._fetch(list(pending.values()))
            for (number, wanted), answer in zip(list(pending.items()), answers, strict=True):
                fault = self._fault(wanted, answer)
                if fault is None:
                    assert isinstance(answer, bytes)
                    found[number] = self._keep(wanted, _cut(wanted, answer))
                    del pending[number]
                elif is_final(answer) or tries == (_LOCAL_TRIES if self._is_local(wanted.name) else _TRIES):
                    raise self._error(wanted, answer, fault, tries)
            if pending:
                _sleep(wait * _CHANCE.uniform(0.5, 1.0))
                wait = min(2 * wait, _LONGEST_WAIT)
        return [found[number] for number in range(len(ranges))]

    def sizes(self) -> dict[str, int] | None:
        """Name and bytes of each file of the folder; None where the storage cannot list. Raises DataError."""
        if self.local:
            try:
                with os.scandir(self.url) as entries:
                    return {entry.name: entry.stat().st_size for entry in entries}
            except OSError as error:
                raise DataError(f"{self.url} cannot be listed ({error.strerror})") from error
        protocol, folder = split(self.url)
        assert protocol is not None
        if protocol in _HTTP:
            return None
        for tries in range(_TRIES):
            try:
                listed = filesystem(protocol).ls(folder, detail=True, refresh=True)
                return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in listed}
            except Exception as error:  # as in `_fetch`
                if is_final(error) or tries == _TRIES - 1:
                    raise DataError(f"{redacted(self.url)} cannot be listed ({said(error)})") from error
                self.counts.retries += 1
                _sleep(min(_FIRST_WAIT * 2**tries, _LONGEST_WAIT) * _CHANCE.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")

    def _place(self, name: str) -> tuple[str | None, str]:
        """Protocol and path of a file."""
        if "://" in name or name.startswith(("/", "pipe:")):
            return split(name)
        protocol, folder = split(self.url)
        return protocol, f"{folder}/{name}" + (f"?{self.query}" if self.query else "")

    def _is_local(self, name: str) -> bool:
        return self._place(name)[0] is None

    def _kept(self, wanted: Range) -> bytes | None:
        if self.cache is None or wanted.sha256 is None or self._is_local(wanted.name):
            return None
        before = self.cache.quarantined
        data = self.cache.get(wanted.sha256)
        self.counts.quarantined += self.cache.quarantined - before
        if data is None or (
            wanted.start is not None and wanted.end is not None and len(data) != wanted.end - wanted.start
        ):
            return None
        self.counts.cache_hits += 1
        return data

    def _keep(self, wanted: Range, data: bytes) -> bytes:
        self.counts.bytes_fetched += len(data)
        if self.cache is not None and wanted.sha256 is not None and not self._is_local(wanted.name):
            self.cache.put(wanted.sha256, data)
            self.counts.failed_cache_writes = self.cache.failed_writes
        return data

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes | Exception]:
        """An answer to each: bytes, or what went wrong."""
        answers: dict[Range, bytes | Exception] = {}
        remote: dict[str, list[Range]] = {}
        for wanted in ranges:
            protocol, path = self._place(wanted.name)
            if protocol is None:
                answers[wanted] = _read_local(path, wanted.start, wanted.end)
            else:
                remote.setdefault(protocol, []).append(wanted)
        for protocol, own in remote.items():
            paths = [_path_for(*self._place(wanted.name)) for wanted in own]
            starts, ends = [wanted.start for wanted in own], [wanted.end for wanted in own]
            storage = filesystem(protocol)
            together: dict[str, Any] = {"batch_size": _AT_ONCE} if storage.async_impl else {}
            if protocol == "hf":
                together = {"cache_type": "none"}  # its default reads 5 MB beyond each range
            try:
                got = storage.cat_ranges(paths, starts, ends, on_error="return", **together)
                answers |= dict(zip(own, got, strict=True))
            except Exception as error:  # noqa: BLE001  # storage libraries raise what they like; it is retried and told
                answers |= dict.fromkeys(own, error)
        return [answers[wanted] for wanted in ranges]

    def _fault(self, wanted: Range, answer: bytes | Exception) -> str | None:
        """What is wrong with an answer, None if nothing is; counts it."""
        if not isinstance(answer, bytes):
            self.counts.retries += 1
            return said(answer)
        data = _cut(wanted, answer)
        if wanted.end is not None and wanted.start is not None and len(data) != wanted.end - wanted.start:
            self.counts.refetched += 1
            return f"{len(data):,} bytes came where {wanted.end - wanted.start:,} were asked for: the file is truncated"
        if wanted.sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != wanted.sha256:
            self.counts.refetched += 1
            return f"the bytes are not those of the manifest: sha256 {digest}, expected {wanted.sha256}"
        return None

    def _error(self, wanted: Range, answer: bytes | Exception, fault: str, tries: int) -> DataError:
        if isinstance(answer, bytes) and self.cache is not None and wanted.sha256 is not None:
            self.cache.quarantine(answer, wanted.sha256)
            self.counts.quarantined += 1
            fault += f", kept in {self.cache.folder / 'quarantine'}"
        protocol, path = self._place(wanted.name)
        bounds = "" if wanted.start is None else f", bytes {wanted.start:,} to {wanted.end:,}"
        what = f" ({wanted.what})" if wanted.what else ""
        place = redacted(path if protocol is None else f"{protocol}://{path}")
        remedy = f": {wanted.remedy}" if wanted.remedy else ""
        kind = MissingError if isinstance(answer, FileNotFoundError) else DataError
        error = kind(
            f"{place}{bounds}{what} cannot be read ({fault}; {tries} {'try' if tries == 1 else 'tries'}){remedy}"
        )
        if isinstance(answer, Exception) and redacted(str(answer)) == str(answer):  # a traceback shows its cause, too
            error.__cause__ = answer
        return error


def split(url: str) -> tuple[str | None, str]:
    """Protocol and path of a URL; the protocol of a local path is None. Raises ConfigError for what may not be read."""
    if f"://{_HIDDEN}@" in url or url.endswith(f"?{_HIDDEN}"):
        raise ConfigError(
            f"{url} lacks what is secret in it, which a run directory does not keep: write it into the run's "
            "config.yaml, in full, to have it read"
        )
    if url.startswith("pipe:"):
        raise ConfigError(f"{redacted(url)} would run a command: no shell is ever run to read data; name a path or URL")
    if re.search(r"^[^/]*::|::\w+://", url) or (protocol := _protocol(url)) not in {None, *PROTOCOLS}:
        raise ConfigError(
            f"{redacted(url)} is not read: name a path, or a URL that begins with one of "
            f"{', '.join(f'{known}://' for known in PROTOCOLS)}"
        )
    if protocol in (None, "file", "local"):
        return None, url.split("://", 1)[-1]
    return protocol, url.split("://", 1)[1]


def open_file(url: str) -> IO[bytes]:
    """A file to be read from anywhere in it, not retried or verified: for making an index, not for training."""
    protocol, path = split(url)
    try:
        if protocol is None:
            return open(path, "rb")
        return filesystem(protocol).open(_path_for(protocol, path), "rb")
    except Exception as error:  # noqa: BLE001  # as in `_fetch`
        raise DataError(f"{redacted(url)} cannot be opened ({said(error)})") from None


def redacted(told: Told, name: str = "") -> Told:
    """A text, or a tree of them, without what may be secret.

    That is, in URLs, names and passwords before the host, and queries; and a text whose own name says that it is one.
    """
    if isinstance(told, dict):
        return cast(Told, {key: redacted(value, str(key)) for key, value in told.items()})
    if isinstance(told, list):
        return cast(Told, [redacted(value, name) for value in told])
    if not isinstance(told, str):
        return told
    if told and _SECRET.search(name):
        return cast(Told, _HIDDEN)
    hidden = re.sub(r"://[^\s/@]+@", f"://{_HIDDEN}@", told)
    return cast(Told, re.sub(r"(://[^\s?#'\"]*)\?[^\s'\")]*", rf"\1?{_HIDDEN}", hidden))


def said(error: Exception) -> str:
    """An exception of a library in words, without secrets; some say nothing, so its kind comes first."""
    return redacted(f"{type(error).__name__}: {error}".removesuffix(": "))


def _protocol(url: str) -> str | None:
    match = re.match(r"([^/]*)://", url)
    return match[1] if match else None


def _path_for(protocol: str | None, path: str) -> str:
    """A path as its file system wants it."""
    return f"{protocol}://{path}" if protocol in _HTTP else path


def filesystem(protocol: str, **options: Any) -> Any:
    """fsspec's file system, which it keeps for the next time. Raises ConfigError where its package is not installed."""
    try:
        if protocol in _HTTP:
            import aiohttp

            # fsspec's own limit is five minutes for a whole answer, which cuts large ones and waits long for dead ones.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_STALL_SECONDS, sock_read=_STALL_SECONDS)
            options["client_kwargs"] = {"timeout": timeout}
            options["headers"] = {"Accept-Encoding": "identity"}  # a range of a compressed answer is another range
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = PROTOCOLS[protocol]
        raise ConfigError(
            f"{protocol}:// needs a package that is not installed ({error}): pip install 'gemcutter[{extra}]'"
        ) from error


def _read_local(path: str, start: int | None, end: int | None) -> bytes | Exception:
    try:
        if start is None or end is None:
            return Path(path).read_bytes()
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            return file.read(end - start)
    except OSError as error:
        return error


def _cut(wanted: Range, answer: bytes) -> bytes:
    """Of an answer to a range what was asked for: a server may send the whole file instead."""
    if wanted.start is None or wanted.end is None or len(answer) <= wanted.end - wanted.start:
        return answer
    return answer[wanted.start : wanted.end]


def is_final(answer: bytes | Exception) -> bool:
    """Whether asking again cannot help: not there, or not allowed."""
    if isinstance(answer, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return True
    status = getattr(answer, "status", None) or getattr(answer, "code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)

"""A piece of a file that one task reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.document import Record

# Bytes of one document as they lie in the file (a line, a page, a text). Larger ones are `too_large`, and never read.
LARGEST = 64 << 20
SLICE_BYTES = 256 << 20


@dataclass(frozen=True)
class Slice:
    """What lies between `begin` and `end` of a file, in what its format counts: bytes of a plain file, row groups of
    Parquet, bytes of the whole file where it can only be read from its start.

    locator   names the file in ids and urls, free of this machine's folders
    size      bytes of the whole file when it was cut into slices
    first     records (lines, rows) before the first of this slice, so that names of records do not depend on slices
    """

    path: str
    locator: str
    size: int
    begin: int
    end: int
    first: int = 0

    @property
    def bytes(self) -> int:
        """About how much there is to read, as it lies on the disk."""
        return self.end - self.begin if self.end > self.begin else self.size


@dataclass(frozen=True)
class Format:
    """How files with an ending are read.

    check     raises where a file is not what its name says: path, name of the text field
    slices    a file in pieces of about so many bytes: path, locator, bytes. The same whenever the file is the same
    records   of a slice: slice, name of the text field, bytes of the largest document
    """

    check: Callable[[Path, str], None]
    slices: Callable[[Path, str, int], list[Slice]]
    records: Callable[[Slice, str, int], Iterator[Record]]


def whole(path: Path, locator: str, slice_bytes: int) -> list[Slice]:
    """A file that is one slice, however large."""
    del slice_bytes
    size = path.stat().st_size
    return [Slice(str(path), locator, size, 0, size)]


def too_large(place: str, url: str = "") -> Record:
    return Record("", "text", place, url=url, reason="too_large")


def damaged(place: str) -> Record:
    """What stands for the rest of a file that cannot be read from here on; it counts as one record."""
    return Record("", "text", place, reason="damaged")

"""What a file is, by its first bytes, against what its name says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from conf.exits import DataError
from data_pipeline.extract import looks_binary
from data_pipeline.sources.slices import Slice

# First bytes -> what such a file is. NUL bytes alone do not tell a PDF from a text.
MAGIC = {
    b"PAR1": "a Parquet file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"PK\x03\x04": "a ZIP archive (or a document in one)",
    b"%PDF-": "a PDF",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "an executable",
    b"SQLite format 3\x00": "an SQLite database",
    b"WARC/": "a WARC file",
}
TEXTS = {b"{": "text that looks like JSON", b"[": "text that looks like JSON", b"<": "text that looks like HTML or XML"}
ZSTD, GZIP, PARQUET = b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"PAR1"
HEAD_BYTES = 8192


def found(head: bytes) -> str:
    """What the first bytes of a file look like, in words; never the bytes themselves, which may be personal."""
    if not head:
        return "an empty file (0 bytes)"
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if looks_binary(head):
        return "binary data"
    return next((name for sign, name in TEXTS.items() if head.lstrip().startswith(sign)), "text")


def head_of(path: Path) -> bytes:
    """The first 8 KiB of a file. Raises DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def not_what_its_name_says(path: Path, expected: str, detail: str) -> DataError:
    return DataError(
        f"{path} is named like {expected}, but {detail}: nothing was written; repair, rename or remove the file, "
        "or leave it out of curate.sources[].paths"
    )


def check_text(path: Path, expected: str = "a text file") -> None:
    """Raise DataError where a text or HTML file is something binary. An empty file is a text without words."""
    head = head_of(path)
    known = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if (known and known != "a WARC file") or looks_binary(head):
        raise not_what_its_name_says(path, expected, f"holds {known or 'binary data'}")


@contextmanager
def opened(slice: Slice) -> Iterator[BinaryIO]:
    """The file of a slice, to read from. Raises DataError where it, or the place where it lies, is gone or changed
    since the slices were made, and where reading fails inside the block."""
    remedy = "nothing was written; put it back as it was and start again, or leave it out of curate.sources[].paths"
    try:
        with open(slice.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != slice.size:
                raise DataError(
                    f"{slice.path} changed while it was being read: it had {slice.size} bytes and has {size}: {remedy}"
                )
            yield file
    except OSError as error:
        raise DataError(
            f"{slice.path} cannot be read any more ({error.strerror or error}), in its slice {slice.begin} to "
            f"{slice.end}: {remedy}"
        ) from error

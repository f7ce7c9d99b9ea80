"""The formats of files, by the endings of their names.

Two kinds of trouble are told apart. A file that is not what its name says raises DataError, when it is checked,
before anything is read. What is broken in a good file is yielded with its reason, to be counted, and reading goes on:

    broken_record   a line or row that holds no text
    too_large       a document larger than any may be; it was not read
    damaged         a stretch of a file that cannot be read, or that is missing at its end
    content_type, http_status   an answer in a web archive that is no page
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conf.exits import ConfigError, DataError
from data_pipeline.document import Record
from data_pipeline.sources import files, lines, parquet, warc
from data_pipeline.sources.slices import LARGEST, SLICE_BYTES, Format, Slice

# Longest suffix first.
FORMATS: dict[str, Format] = {
    ".jsonl.zst": lines.JSONL_ZST,
    ".jsonl.gz": lines.JSONL_GZ,
    ".warc.gz": warc.WARC,
    ".parquet": parquet.PARQUET_FILE,
    ".jsonl": lines.JSONL,
    ".warc": warc.WARC,
    ".html": files.HTML,
    ".htm": files.HTML,
    ".txt": files.TEXT,
    ".md": files.TEXT,
}


def format_of(path: Path) -> Format:
    """The format that a file name tells. Raises ConfigError where none has its ending."""
    for suffix, format_ in FORMATS.items():
        if path.name.lower().endswith(suffix):
            return format_
    raise ConfigError(
        f"{path} has an ending that no reader knows: use {', '.join(sorted(FORMATS))}, "
        "or leave the file out of curate.sources[].paths"
    )


def check(path: Path, text_field: str) -> None:
    """Raise ConfigError or DataError where a file is not what its name says, or has no such field."""
    with _readable(path):
        format_of(path).check(path, text_field)


def slices(path: Path, locator: str, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """A file in pieces, in order, of about so many bytes where its format can be cut: plain JSON lines and Parquet."""
    with _readable(path):
        return format_of(path).slices(path, locator, slice_bytes)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def records(slice: Slice, text_field: str, largest: int = LARGEST) -> Iterator[Record]:
    """The records of a slice, in order. Those of all slices of a file are the same, however it was cut.

    Raises DataError where the file is gone or another than it was.
    """
    return format_of(Path(slice.path)).records(slice, text_field, largest)

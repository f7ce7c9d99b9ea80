"""One reader per file format: a file to records.

Two kinds of trouble are told apart. A file that is not what its name says, or that ends early, raises DataError. A
broken record in a good file is yielded with the reason `broken_record`, to be counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from data_pipeline.document import Record
from data_pipeline.extract import looks_binary

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
ZSTD, GZIP, PARQUET = b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"PAR1"
HEAD_BYTES = 8192
READ_BYTES = 1 << 20
# So many leading lines that are no JSON object, and a file is not called JSON lines any more.
LEADING_BROKEN = 10
HTML_TYPES = ("text/html", "application/xhtml+xml")
STATED = ("url", "source", "language", "license")  # fields of a row that a record keeps


def found(head: bytes) -> str:
    """What the first bytes of a file look like, in words."""
    if not head:
        return "an empty file (0 bytes)"
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    return "binary data" if looks_binary(head) else f"text that starts with {head[:40].decode('utf-8', 'replace')!r}"


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


def text(path: Path, locator: str, text_field: str) -> Iterator[Record]:
    """The file as one document."""
    yield Record(_content(path), "text", locator)


def html(path: Path, locator: str, text_field: str) -> Iterator[Record]:
    """The page as one document."""
    yield Record(_content(path), "html", locator)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def jsonl(path: Path, locator: str, text_field: str) -> Iterator[Record]:
    """A document per line of JSON."""
    with path.open("rb") as file:
        yield from _rows_of_lines(enumerate(file, 1), path, locator, text_field, "JSON lines")


def jsonl_zst(path: Path, locator: str, text_field: str) -> Iterator[Record]:
    """A document per line of JSON, compressed by Zstandard."""
    if not head_of(path).startswith(ZSTD):
        raise not_what_its_name_says(path, "a Zstandard file", f"holds {found(head_of(path))}")
    yield from _rows_of_lines(_zstd_lines(path), path, locator, text_field, "compressed JSON lines")


def _zstd_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file of one or more Zstandard frames. Raises DataError where a frame is broken or cut off."""
    import zstandard

    # The library's own stream reader takes a cut-off frame for a finished one.
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    number = 1
    begun: list[bytes] = []
    try:
        with path.open("rb") as file:
            while data := file.read(READ_BYTES):
                while data:
                    frame = frame or decompressor.decompressobj()
                    *whole, rest = frame.decompress(data).split(b"\n")
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
                    for line in whole:
                        yield number, b"".join([*begun, line])
                        number, begun = number + 1, []
                    begun.append(rest)
    except zstandard.ZstdError as error:
        raise not_what_its_name_says(
            path, "a Zstandard file", f"is broken after line {number - 1} ({error})"
        ) from error
    if frame is not None:
        raise not_what_its_name_says(path, "a Zstandard file", f"is cut off after line {number - 1}")
    yield number, b"".join(begun)


def _rows_of_lines(
    lines: Iterator[tuple[int, bytes]], path: Path, locator: str, text_field: str, expected: str
) -> Iterator[Record]:
    leading: list[tuple[Record, str]] | None = []  # records before the first good one, and what is wrong with each
    fields: set[str] = set()  # names seen in rows without the text field
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{locator}#{number}"
        record, wrong, names = _row_of_line(line, place, text_field)
        if leading is None:
            yield record
            continue
        if wrong:
            fields |= names
            leading.append((record, f"line {number} {wrong}"))
            if len(leading) < LEADING_BROKEN:
                continue
            break
        yield from (early for early, _ in leading)
        leading = None
        yield record
    if leading:
        if fields:
            raise _no_text_field(path, text_field, fields)
        raise not_what_its_name_says(path, expected, leading[0][1])


def _row_of_line(line: bytes, place: str, text_field: str) -> tuple[Record, str, set[str]]:
    """A record, what is wrong with it ("" for nothing), and the names of its fields where only the text is missing."""
    broken = Record(line, "text", place, reason="broken_record")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return broken, f"is not JSON ({error}); it starts with {line[:40].decode('utf-8', 'replace')!r}", set()
    if not isinstance(row, dict):
        return broken, f"holds a JSON {type(row).__name__}, not an object", set()
    if not isinstance(row.get(text_field), str):
        return broken, f"has no text in the field {text_field!r}", set(row)
    return record_of_row(row, place, text_field), "", set()


def record_of_row(row: dict[str, Any], place: str, text_field: str) -> Record:
    """A row with text as a record; fields of other types than text are not kept (an integer id is)."""
    stated = {name: value for name in STATED if isinstance(value := row.get(name), str)}
    given = row.get("id")
    identity = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else ""
    return Record(row[text_field], "text", place, id=identity, **stated)


def _no_text_field(path: Path | str, text_field: str, fields: set[str]) -> ConfigError:
    return ConfigError(
        f"{path} has no text in a field {text_field!r}; its fields are {', '.join(sorted(map(str, fields)))}: "
        "set curate.sources[].text_field to the one that holds the text"
    )


def parquet(path: Path, locator: str, text_field: str) -> Iterator[Record]:
    """A document per row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not head_of(path).startswith(PARQUET):
        raise not_what_its_name_says(path, "a Parquet file", f"holds {found(head_of(path))}")
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise _no_text_field(path, text_field, set(names))
            columns = [name for name in ("id", text_field, *STATED) if name in names]
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{locator}#{number}"
                    if isinstance(row[text_field], str):
                        yield record_of_row(row, place, text_field)
                    else:
                        yield Record("", "text", place, reason="broken_record")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise not_what_its_name_says(path, "a Parquet file", f"is broken after row {number} ({error})") from error


def warc(path: Path, locator: str, text_field: str) -> Iterator[Record]:
    """A document per response, resource or conversion record of a web archive, compressed or not.

    Other content types than HTML and plain text have the reason `content_type`, other answers than 200 `http_status`.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    head = head_of(path)
    zipped = path.suffix == ".gz"
    if not head.startswith(GZIP if zipped else b"WARC/"):
        raise not_what_its_name_says(path, "a compressed WARC" if zipped else "a WARC", f"holds {found(head)}")
    documents = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    number = 0
    try:
        for entry in ArchiveIterator(str(path), parse_http=False, fsspec_args=False):
            number += 1
            declared = entry.content_length
            entry.freeze()  # reads the block; what is there of it is its length from then on
            if entry.content_length < declared:
                raise not_what_its_name_says(path, "a WARC", f"is cut off in record {number}")
            if entry.record_type & documents:
                yield _record_of_warc(entry, f"{locator}#{number}")
    except OSError as error:
        raise not_what_its_name_says(path, "a WARC", f"is broken after record {number} ({error})") from error
    if not number:
        raise not_what_its_name_says(path, "a WARC", "holds no record")


def _record_of_warc(entry: Any, place: str) -> Record:
    entry.parse_http(auto_decode="all")
    content = entry.reader.read()
    kind = (entry.http_content_type or entry.headers.get("Content-Type") or "").split(";")[0].strip().lower()
    url = entry.headers.get("WARC-Target-URI") or ""
    status = entry.http_headers.status_code if entry.http_headers else None
    if status not in (None, 200):
        return Record("", "text", place, url=url, reason="http_status")
    if kind not in (*HTML_TYPES, "text/plain"):
        return Record("", "text", place, url=url, reason="content_type")
    form = "html" if kind in HTML_TYPES else "text"
    return Record(content, form, place, url=url, charset=entry.http_charset or "")  # type: ignore[arg-type]


Reader = Callable[[Path, str, str], Iterator[Record]]
# Longest suffix first.
READERS: dict[str, Reader] = {
    ".jsonl.zst": jsonl_zst,
    ".warc.gz": warc,
    ".parquet": parquet,
    ".jsonl": jsonl,
    ".warc": warc,
    ".html": html,
    ".htm": html,
    ".txt": text,
    ".md": text,
}


def reader_of(path: Path) -> Reader:
    """The reader for a file name. Raises ConfigError where no reader knows its ending."""
    for suffix, reader in READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    raise ConfigError(
        f"{path} has an ending that no reader knows: use {', '.join(sorted(READERS))}, "
        "or leave the file out of curate.sources[].paths"
    )


def check(path: Path, text_field: str) -> None:
    """Raise the error that reading the file would raise at its start."""
    reader = reader_of(path)
    if reader in (text, html):
        check_text(path, "a text file" if reader is text else "an HTML file")
    else:
        next(reader(path, path.name, text_field), None)

"""Web archives: a document per response, resource or conversion record.

A file that is damaged or cut off gives what is whole in it: reading goes on at the next record that begins after the
damage, and each damaged stretch counts as one record.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.document import Record
from data_pipeline.sources.magic import GZIP, found, head_of, not_what_its_name_says, opened
from data_pipeline.sources.rows import writable
from data_pipeline.sources.slices import LARGEST, Format, Slice, damaged, too_large, whole

HTML_TYPES = ("text/html", "application/xhtml+xml")
READ_BYTES = 1 << 20
# How a record begins, compressed (each is a gzip member) or not.
STARTS = {True: b"\x1f\x8b\x08", False: b"\r\n\r\nWARC/"}
ROOM = 1 << 16  # bytes of the HTTP headers before a document


def _check(path: Path, text_field: str) -> None:
    """Look for a whole record."""
    head, zipped = head_of(path), path.suffix.lower() == ".gz"
    if not head.startswith(GZIP if zipped else b"WARC/"):
        raise not_what_its_name_says(path, "a compressed WARC" if zipped else "a WARC", f"holds {found(head)}")
    size = path.stat().st_size
    records = _records(Slice(str(path), path.name, size, 0, size), text_field, LARGEST, every_kind=True)
    found_damage = False
    for record in records:
        if record.reason != "damaged":
            return
        found_damage = True
    detail = "is broken after record 0, and holds no whole record" if found_damage else "holds no record"
    raise not_what_its_name_says(path, "a WARC", detail)


def _records(slice: Slice, text_field: str, largest: int, every_kind: bool = False) -> Iterator[Record]:
    """`every_kind`: records of other kinds too."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    documents = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    with opened(slice) as file:
        zipped = file.read(2) == GZIP
        number = last = 0
        start: int | None = 0
        lost = False  # whether the stretch that cannot be read is counted already
        while start is not None:
            file.seek(start)
            try:
                for entry in ArchiveIterator(file, parse_http=False):
                    last, place = entry.stream_pos, f"{slice.locator}#{number + 1}"
                    wanted, large = bool(entry.record_type & documents), entry.content_length > largest + ROOM
                    if not large:
                        declared = entry.content_length
                        entry.freeze()  # reads the block; what is there of it is its length from then on
                        if entry.content_length < declared or (not declared and not _ended(file, last, zipped)):
                            raise _CutOffError
                    number, lost = number + 1, False
                    if wanted or every_kind:
                        yield too_large(place) if large else _record(entry, place, largest)
                if not zipped or _members_end(file, last):
                    return
            except _CutOffError:
                pass
            except OSError as error:
                if error.errno is not None:
                    raise  # the disk's trouble, not the file's
            if not lost:
                number, lost = number + 1, True
                yield damaged(f"{slice.locator}#{number}")
            start = _next_start(file, max(last, start) + 1, zipped)


class _CutOffError(Exception):
    """A record has less than it says."""


def _ended(file: BinaryIO, start: int, zipped: bool) -> bool:
    """Whether a record that begins there and says to be empty may be so, or is cut off before it says its length."""
    here = file.tell()
    if zipped:
        ended = _members_end(file, start, most=1)
    else:
        file.seek(-1, os.SEEK_END)
        ended = file.read(1) == b"\n"
    file.seek(here)
    return ended


def _members_end(file: BinaryIO, start: int, most: int | None = None) -> bool:
    """Whether the gzip members from there on are whole, all or so many. The archive reader takes the beginning of one
    for nothing."""
    file.seek(start)
    member = None
    whole = 0
    while data := file.read(READ_BYTES):
        while data:
            if member is None:
                if whole == most:
                    break
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                member.decompress(data, READ_BYTES)
            except zlib.error:
                return False
            if member.eof:
                data, member, whole = member.unused_data, None, whole + 1
            else:
                data = member.unconsumed_tail
        if whole == most:
            break
    return member is None


def _next_start(file: BinaryIO, start: int, zipped: bool) -> int | None:
    """Where the next record begins, at `start` or later; None where there is none."""
    mark = STARTS[zipped]
    file.seek(start)
    window, position = b"", start
    while data := file.read(READ_BYTES):
        window += data
        at = window.find(mark)
        while at >= 0:
            if not zipped:
                return position + at + window[at:].index(b"WARC/")
            if _begins_record(file, position + at):
                return position + at
            at = window.find(mark, at + 1)
        position += len(window) - len(mark) + 1
        window = window[1 - len(mark) :]
        file.seek(position + len(window))
    return None


def _begins_record(file: BinaryIO, start: int) -> bool:
    """Whether a gzip member that holds a record begins there."""
    file.seek(start)
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(file.read(1 << 12), 5) == b"WARC/"
    except zlib.error:
        return False


def _record(entry: Any, place: str, largest: int) -> Record:
    """Other content types than HTML and plain text have the reason `content_type`, other answers than 200
    `http_status`."""
    entry.parse_http(auto_decode="all")
    kind = (entry.http_content_type or entry.headers.get("Content-Type") or "").split(";")[0].strip().lower()
    url = writable(entry.headers.get("WARC-Target-URI") or "")
    status = entry.http_headers.status_code if entry.http_headers else None
    if status not in (None, 200):
        return Record("", "text", place, url=url, reason="http_status")
    if kind not in (*HTML_TYPES, "text/plain"):
        return Record("", "text", place, url=url, reason="content_type")
    content = entry.reader.read(largest + 1)  # may be a little file that unpacks to a large one
    if len(content) > largest:
        return too_large(place, url)
    form = "html" if kind in HTML_TYPES else "text"
    return Record(content, form, place, url=url, charset=entry.http_charset or "")  # type: ignore[arg-type]


WARC = Format(_check, whole, _records)

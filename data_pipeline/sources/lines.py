"""JSON lines, plain or compressed: a document per line.

A line is read piece by piece, and what is longer than a document may be is never held whole.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data_pipeline.document import Record
from data_pipeline.sources.magic import GZIP, ZSTD, found, head_of, not_what_its_name_says, opened
from data_pipeline.sources.rows import no_text_field, record_of_row
from data_pipeline.sources.slices import LARGEST, Format, Slice, damaged, too_large, whole

READ_BYTES = 1 << 20
# Zstandard packs up to 32,768 bytes into one: so few at a time unpack to 16 MiB at most.
ZSTD_BYTES = 1 << 9
ZSTD_WINDOW = 1 << 31  # the largest that there is
# So many leading lines that are no JSON object, and a file is not called JSON lines any more.
LEADING_BROKEN = 10
# What a line must have beside its text.
ROOM = 1 << 16

Chunks = Callable[[BinaryIO, int], Iterator[bytes]]


class DamagedError(Exception):
    """A compressed file is broken, or ends in the middle."""


def _plain(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size and (data := file.read(min(READ_BYTES, size))):
        size -= len(data)
        yield data


def zstd(file: BinaryIO, size: int) -> Iterator[bytes]:
    """One or more Zstandard frames."""
    import zstandard

    # The library's own stream reader takes a cut-off frame for a finished one.
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    frame = None
    try:
        for read in _plain(file, size):
            for start in range(0, len(read), ZSTD_BYTES):
                data = read[start : start + ZSTD_BYTES]
                while data:
                    frame = frame or decompressor.decompressobj()
                    yield frame.decompress(data)
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise DamagedError(f"is broken ({error})") from error
    if frame is not None:
        raise DamagedError("is cut off")


def gzip(file: BinaryIO, size: int) -> Iterator[bytes]:
    """One or more gzip members."""
    member = None
    try:
        for data in _plain(file, size):
            while data:
                if member is None:
                    if not (data := data.lstrip(b"\0")):  # zeros may fill a file up
                        break
                    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
                yield member.decompress(data, READ_BYTES)
                if member.eof:
                    data, member = member.unused_data, None
                else:
                    data = member.unconsumed_tail
    except zlib.error as error:
        raise DamagedError(f"is broken ({error})") from error
    if member is not None:
        raise DamagedError("is cut off")


def _lines(chunks: Iterator[bytes], longest: int) -> Iterator[bytes | None]:
    """Lines without their ends; None in place of one that is longer than `longest` bytes."""
    begun: list[bytes] = []
    size = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        size += len(first)
        for start in others:
            yield b"".join(begun) if size <= longest else None
            begun, size = [start], len(start)
        if size > longest:
            begun = []
    if size:
        yield b"".join(begun) if size <= longest else None


def _row_of_line(line: bytes, place: str, text_field: str) -> tuple[Record, str, set[str]]:
    """A record, what is wrong with it ("" for nothing), and the names of its fields where only the text is missing."""
    broken = Record(line, "text", place, reason="broken_record")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return broken, f"is not JSON ({error}); it has {len(line)} bytes", set()
    if not isinstance(row, dict):
        return broken, f"holds a JSON {type(row).__name__}, not an object", set()
    if not isinstance(row.get(text_field), str):
        return broken, f"has no text in the field {text_field!r}", set(row)
    return record_of_row(row, place, text_field), "", set()


def _records(chunks: Chunks) -> Callable[[Slice, str, int], Iterator[Record]]:
    def records(slice: Slice, text_field: str, largest: int) -> Iterator[Record]:
        number = slice.first
        with opened(slice) as file:
            file.seek(slice.begin)
            try:
                for line in _lines(chunks(file, slice.end - slice.begin), largest + ROOM):
                    number += 1
                    place = f"{slice.locator}#{number}"
                    if line is None:
                        yield too_large(place)
                    elif line.strip():
                        record = _row_of_line(line, place, text_field)[0]
                        yield record if len(record.content) <= largest else too_large(place, record.url)
            except DamagedError:
                yield damaged(f"{slice.locator}#{number + 1}")

    return records


def _check(chunks: Chunks, magic: bytes, container: str, expected: str) -> Callable[[Path, str], None]:
    def check(path: Path, text_field: str) -> None:
        """Look at the lines up to the first good one, of which there must be one among the first ten."""
        if not (head := head_of(path)).startswith(magic):
            raise not_what_its_name_says(path, container, f"holds {found(head)}")
        wrong: list[str] = []  # what is wrong with each line so far
        fields: set[str] = set()  # names seen in rows without the text field
        number = 0
        with path.open("rb") as file:
            try:
                for line in _lines(chunks(file, path.stat().st_size), LARGEST):
                    number += 1
                    if line is None:
                        return  # nobody writes such lines into anything else
                    if not line.strip():
                        continue
                    _, fault, names = _row_of_line(line, "", text_field)
                    if not fault:
                        return
                    fields |= names
                    wrong.append(f"line {number} {fault}")
                    if len(wrong) == LEADING_BROKEN:
                        break
            except DamagedError as error:
                raise not_what_its_name_says(path, container, f"{error} after line {number}") from error
        if fields:
            raise no_text_field(path, text_field, fields)
        if wrong:
            raise not_what_its_name_says(path, expected, wrong[0])

    return check


def _slices(path: Path, locator: str, slice_bytes: int) -> list[Slice]:
    """Whole lines, of `slice_bytes` bytes or a little more. Reads a file that is larger than that once, to count lines:
    records are named by their line."""
    size = path.stat().st_size
    if size <= slice_bytes:
        return whole(path, locator, slice_bytes)
    slices: list[Slice] = []
    begin = first = lines = position = 0
    with path.open("rb") as file:
        for data in _plain(file, size):
            start = 0  # of what is not counted yet
            while (wanted := max(begin + slice_bytes - 1 - position, start)) < len(data):
                end = data.find(b"\n", wanted) + 1
                if not end:
                    break
                lines += data.count(b"\n", start, end)
                slices.append(Slice(str(path), locator, size, begin, position + end, first))
                begin, first, start = position + end, lines, end
            lines += data.count(b"\n", start)
            position += len(data)
    if begin < size:
        slices.append(Slice(str(path), locator, size, begin, size, first))
    return slices


def _format(chunks: Chunks, magic: bytes, container: str, compressed: str = "compressed ") -> Format:
    cut = whole if magic else _slices
    return Format(_check(chunks, magic, container, f"{compressed}JSON lines"), cut, _records(chunks))


JSONL = _format(_plain, b"", "JSON lines", compressed="")
JSONL_GZ = _format(gzip, GZIP, "a gzip file")
JSONL_ZST = _format(zstd, ZSTD, "a Zstandard file")

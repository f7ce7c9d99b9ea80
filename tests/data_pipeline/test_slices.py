"""A file in slices is the file, and what is broken in it costs itself, counted, and nothing else."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.exits import ConfigError, DataError
from conf.schema import Source
from data_pipeline.document import Record
from data_pipeline.sources import formats, local
from data_pipeline.sources.slices import SLICE_BYTES, Slice

IO = Path("/proc/self/io")


def bytes_read() -> int:
    """What this process has read from files so far."""
    return int(IO.read_text().split()[1])


def read(path: Path, slice_bytes: int = 1 << 30, largest: int = 1 << 20) -> list[Record]:
    """The records of a file, slice by slice."""
    formats.check(path, "text")
    pieces = formats.slices(path, "f", slice_bytes)
    return [record for piece in pieces for record in formats.records(piece, "text", largest)]


def reasons(path: Path, largest: int = 1 << 20) -> list[tuple[str, str]]:
    return [(record.locator, record.reason) for record in read(path, largest=largest)]


def rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(texts: list[str | None], group: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer, row_group_size=group, compression="none")
    return buffer.getvalue()


def page(number: int, body: bytes, more: str = "") -> bytes:
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{more}\r\n".encode() + body
    return (
        (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/{number}\r\n"
            f"WARC-Date: 2020-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
        ).encode()
        + http
        + b"\r\n\r\n"
    )


NOISE = random.Random(0).randbytes(30_000).hex()
PAGES = [page(number, NOISE[3000 * number :][:3000].encode()) for number in range(6)]
TEXTS = [NOISE[50 * number :][:50] for number in range(1000)]

# --- slices ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from(['{"text": "a"}', '{"text": "' + "b" * 90 + '"}', "", "[1]", '{"text'])),
    end=st.sampled_from(["", "\n"]),
    slice_bytes=st.integers(1, 300),
    piece=st.integers(1, 64),
)
def test_lines_in_slices_are_the_lines_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], end: str, slice_bytes: int, piece: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "first"}\n' + "\n".join(lines) + end)
    whole = read(path)
    monkeypatch.setattr("data_pipeline.sources.lines.READ_BYTES", piece)
    pieces = formats.slices(path, "f", slice_bytes)
    assert read(path, slice_bytes) == whole
    assert [record.locator for record in whole] == [
        f"f#{number}" for number, line in enumerate(['{"text": "first"}', *lines], 1) if line
    ]
    assert [piece.begin for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert all(piece.end - piece.begin >= slice_bytes for piece in pieces[:-1])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.one_of(st.none(), st.text("ab")), min_size=1),
    group=st.integers(1, 9),
    slice_bytes=st.integers(1, 500),
)
def test_row_groups_in_slices_are_the_rows_of_the_file(
    tmp_path: Path, texts: list[str | None], group: int, slice_bytes: int
) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(texts, group))
    records = read(path, slice_bytes)
    assert records == read(path)
    assert [(record.content, record.reason) for record in records] == [
        (text, "") if text is not None else ("", "broken_record") for text in texts
    ]
    assert [record.locator for record in records] == [f"f#{number}" for number in range(1, len(texts) + 1)]


def test_small_files_go_into_one_task_and_large_ones_into_several(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x" * 40)
    (tmp_path / "d.jsonl").write_bytes(rows(TEXTS[:10]))
    source = Source(kind="local", paths=[str(tmp_path / "*")])
    slices = local.slices(source, slice_bytes=100)
    tasks = local.tasks(slices, task_bytes=100)
    assert [len(task) for task in tasks[:2]] == [3, 1]
    assert [piece for task in tasks for piece in task] == slices
    assert [record for piece in slices for record in local.records(piece, "text")] == list(local.read(source))


# --- broken input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_compressed_lines_are_kept_up_to_the_damage(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    good, cut = pack(rows(TEXTS[:10])), pack(rows(TEXTS))[:-9]
    for damaged in (good + cut, good + cut[:40] + bytes(40) + cut[80:], good + b"no member"):
        path.write_bytes(damaged)
        found = reasons(path)
        assert found[:10] == [(f"f#{number}", "") for number in range(1, 11)]
        assert [reason for _, reason in found[10:]].count("damaged") == 1
        assert found[-1] == (f"f#{len(found)}", "damaged")


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_web_archive_that_is_cut_gives_what_is_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pages = PAGES if name == "a.warc" else [gzip.compress(page) for page in PAGES]
    for kept in (20, 100, 1500, len(pages[3]) - 60):  # in the headers of the record, in the text
        path.write_bytes(b"".join(pages[:3]) + pages[3][:kept])
        assert reasons(path) == [("f#1", ""), ("f#2", ""), ("f#3", ""), ("f#4", "damaged")], kept


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize("hit", [0, 2, 5])
def test_a_web_archive_is_read_on_behind_the_damage(tmp_path: Path, name: str, hit: int) -> None:
    path = tmp_path / name
    pages = list(PAGES) if name == "a.warc" else [gzip.compress(page) for page in PAGES]
    at = 200 if name == "a.warc.gz" else 0
    broken = bytearray(pages[hit])
    broken[at : at + 60] = b"\xff" * 60
    pages[hit] = bytes(broken) if hit or at else b"WARC/" + bytes(broken[5:])
    path.write_bytes(b"".join(pages))
    assert reasons(path) == [(f"f#{number + 1}", "damaged" if number == hit else "") for number in range(6)]


def test_zeros_that_fill_a_compressed_file_up_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(rows(TEXTS[:3])) + bytes(2_000_000))
    assert reasons(path) == [("f#1", ""), ("f#2", ""), ("f#3", "")]


def test_a_row_group_that_is_broken_costs_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    content = bytearray(parquet([f"{text}" for text in TEXTS[:30]], 10))
    at = content.index(TEXTS[10].encode()) - 4  # the length of the second group's first text
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    found = reasons(path)
    assert found == [
        *[(f"f#{number}", "") for number in range(1, 11)],
        ("f#11", "damaged"),
        *[(f"f#{number}", "") for number in range(21, 31)],
    ]


def test_a_document_that_is_too_large_is_counted_and_not_read(tmp_path: Path) -> None:
    size = 1 << 20
    large = "x" * (3 * size)
    (tmp_path / "a.txt").write_text(large)
    assert reasons(tmp_path / "a.txt", size) == [("f", "too_large")]
    (tmp_path / "a.parquet").write_bytes(parquet(["a", large, "b"], 10))
    assert reasons(tmp_path / "a.parquet", size) == [("f#1", ""), ("f#2", "too_large"), ("f#3", "")]
    (tmp_path / "b.parquet").write_bytes(parquet(["a", large, "b"], 1))  # a row group each
    assert reasons(tmp_path / "b.parquet", size) == [("f#1", ""), ("f#2", "too_large"), ("f#3", "")]
    bomb = page(1, gzip.compress(large.encode()), "Content-Encoding: gzip\r\n")
    (tmp_path / "a.warc").write_bytes(PAGES[0] + bomb + page(2, large.encode()) + PAGES[3])
    assert [reason for _, reason in reasons(tmp_path / "a.warc", size)] == ["", "too_large", "too_large", ""]


def test_many_slices_are_grouped_in_linear_time() -> None:
    pieces = [Slice("a", "f", 1, 0, 1)] * 10_000
    begin = time.process_time()
    assert local.tasks(pieces, 1 << 40) == [tuple(pieces)]
    assert time.process_time() - begin < 1  # milliseconds, or seconds where it is quadratic


@pytest.mark.skipif(not IO.exists(), reason="counts what Linux says was read")
def test_reading_a_large_file_begins_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n')
    os.truncate(path, SLICE_BYTES + (64 << 20))  # sparse: it takes no room
    before = bytes_read()
    assert next(local.read(Source(paths=[str(path)]))).content == "first"
    assert bytes_read() - before < 16 << 20


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_that_is_too_large_is_never_held(tmp_path: Path, ending: str) -> None:
    """200 MB in one line: memory stays at what is read at a time."""
    path = tmp_path / f"a.jsonl{ending}"
    pack = {".gz": gzip.open, ".zst": zstandard.open}.get(ending, open)
    with pack(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "b"}\n')
    piece = formats.slices(path, "f")[0]
    tracemalloc.start()
    found = [(record.locator, record.reason) for record in formats.records(piece, "text", 1 << 20)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [("f#1", ""), ("f#2", "too_large"), ("f#3", "")]
    assert peak < 80 << 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.warc", "a.txt"])
@pytest.mark.parametrize("end", ["vanishes", "grows", "shrinks"])
def test_a_file_that_is_gone_or_another_is_named_with_what_to_do(tmp_path: Path, name: str, end: str) -> None:
    path = tmp_path / name
    content = {".jsonl": rows(TEXTS), ".gz": gzip.compress(rows(TEXTS)), ".warc": b"".join(PAGES)}
    path.write_bytes(parquet(list(TEXTS), 100) if name == "a.parquet" else content.get(path.suffix, b"text"))
    piece = formats.slices(path, "f")[0]
    if end == "vanishes":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"more" if end == "grows" else path.read_bytes()[:-2])
    wrong = "cannot be read any more" if end == "vanishes" else "changed while it was being read"
    with pytest.raises(DataError, match=rf"a\.\w+.* {wrong}.*nothing was written; put it back"):
        list(formats.records(piece, "text"))


def test_what_a_record_states_can_always_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    stated = {"text": "a\0\ud800b", "id": "\udfff\0", "url": "\ud83d", "source": "s\0", "license": "\udc00"}
    path.write_text(json.dumps(stated) + "\n")
    (record,) = read(path)
    for name in ("id", "url", "source", "license"):
        value = getattr(record, name)
        assert value.encode()
        assert "\0" not in value


def test_lines_of_other_encodings_and_types_are_broken_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    lines = [b'{"text": "a"}', b'{"text": "\xff"}', b'{"text": 1}', b"null", b'"a"', deep, b'{"text": "b", "id": [1]}']
    path.write_bytes(b"\n".join(lines))
    assert [reason for _, reason in reasons(path)] == ["", *["broken_record"] * 5, ""]
    assert read(path)[-1].id == ""


def test_a_parquet_file_whose_column_is_missing_or_holds_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for table, message in (
        ({"body": ["a"]}, r"no text in a field 'text'; its fields are body"),
        ({"text": [1]}, "int64"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(ConfigError, match=message):
            formats.check(path, "text")


def test_slices_are_plain_values() -> None:
    piece = Slice("/a/b.jsonl", "file:b.jsonl", 10, 0, 5, 2)
    assert Slice(**json.loads(json.dumps(dataclasses.asdict(piece)))) == piece

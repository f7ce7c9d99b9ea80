"""Sources yield what is there, in order; what is missing or not what its name says stops with a clear error."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from conf.exits import ConfigError, DataError
from conf.schema import Source
from data_pipeline import sources
from data_pipeline.document import Record
from data_pipeline.sources import local, python_env

ROWS = [
    {"id": "a", "text": "First.", "url": "https://docs.example/1", "source": "web", "language": "en", "license": "MIT"},
    {"id": 7, "text": "Second.\nTwo lines."},
    {"text": "Third.", "other": 1},
]


def read(*paths: Path | str, **keys: str) -> list[Record]:
    return list(local.read(Source(kind="local", paths=[str(path) for path in paths], **keys)))


def as_jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    columns = {
        name: [None if (v := row.get(name)) is None else str(v) for row in rows]
        for name in ("id", "text", "url", *("source", "language", "license"))
    }
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def warc_record(kind: str, uri: str, block: bytes, content_type: str) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{len(uri):012d}>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def response(uri: str, body: bytes, content_type: str = "text/html", status: str = "200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return warc_record("response", uri, http + body, "application/http; msgtype=response")


PAGES = [
    warc_record("warcinfo", "x", b"software: none\r\n", "application/warc-fields"),
    response("https://docs.example/a", "<p>Größe</p>".encode("iso-8859-1"), "text/html; charset=iso-8859-1"),
    response("https://docs.example/b", b"\x89PNG\0\0", "image/png"),
    response("https://docs.example/c", b"moved", status="301 Moved"),
    warc_record("conversion", "https://docs.example/d", b"Plain text.", "text/plain"),
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", as_jsonl(ROWS)),
        ("rows.jsonl.zst", zstandard.compress(as_jsonl(ROWS))),
        ("frames.jsonl.zst", zstandard.compress(as_jsonl(ROWS)[:50]) + zstandard.compress(as_jsonl(ROWS)[50:])),
        ("rows.parquet", as_parquet(ROWS)),
    ],
)
def test_rows_keep_what_they_state(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    first, second, third = read(tmp_path / name)
    assert first.content == "First."
    stated = (first.id, first.url, first.source, first.language, first.license)
    assert stated == ("a", "https://docs.example/1", "web", "en", "MIT")
    assert (second.id, second.content) == ("7", "Second.\nTwo lines.")
    assert third.id == ""
    assert third.url == f"file:{tmp_path.name}/{name}#3"


@pytest.mark.parametrize(("name", "pack"), [("w.warc", bytes), ("w.warc.gz", gzip.compress)])
def test_warc_pages_come_with_url_charset_and_reasons(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(b"".join(pack(page) for page in PAGES))
    page, image, moved, plain = read(tmp_path / name)
    assert (page.url, page.form, page.charset) == ("https://docs.example/a", "html", "iso-8859-1")
    assert (image.reason, moved.reason) == ("content_type", "http_status")
    assert (plain.form, plain.content, plain.reason) == ("text", b"Plain text.", "")


def test_files_come_sorted_once_and_without_the_machine_in_their_names(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.md", "c.html"):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).write_text(name)
    (tmp_path / "docs/link.txt").symlink_to(tmp_path / "docs/b/2.txt")
    records = read(tmp_path / "docs/**/*.*", tmp_path / "docs/b/*.txt")
    assert [record.locator for record in records] == ["file:docs/a/1.md", "file:docs/b/2.txt", "file:docs/c.html"]
    assert [record.form for record in records] == ["text", "text", "html"]


def test_relative_globs_name_files_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("a")
    assert [record.url for record in read("docs/*.txt")] == ["file:docs/a.txt"]


def test_a_broken_record_in_a_good_file_is_yielded_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": \n[1]\n{"text": 3}\n\xff\n\n{"text": "good"}\n')
    records = read(path)
    assert [record.reason for record in records] == ["", *["broken_record"] * 4, ""]
    assert [record.locator[-2:] for record in records] == ["#1", "#2", "#3", "#4", "#5", "#7"]


def test_a_broken_record_may_come_first(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"te\n{"text": "good"}\n')
    assert [record.reason for record in read(tmp_path / "rows.jsonl")] == ["broken_record", ""]


NOT_JSON = b"Dear reader,\nthis is a letter.\n"
COMPRESSED = zstandard.compress(as_jsonl(ROWS) * 100)
PARQUET = as_parquet(ROWS * 100)
WARC = b"".join(PAGES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", NOT_JSON, r"a\.jsonl is named like JSON lines, but line 1 is not JSON .*it has 12 bytes"),
        ("a.jsonl", b"\n[1, 2]\n", r"line 2 holds a JSON list, not an object"),
        ("a.jsonl", gzip.compress(as_jsonl(ROWS)), r"a\.jsonl is named like JSON lines, but line 1 is not JSON"),
        (
            "a.jsonl.zst",
            as_jsonl(ROWS),
            r"a\.jsonl\.zst is named like a Zstandard file, but holds text that looks like JSON",
        ),
        ("a.jsonl.zst", b"", r"holds an empty file \(0 bytes\)"),
        ("a.jsonl.zst", COMPRESSED[:-9], r"is cut off after line \d+"),
        ("a.jsonl.zst", zstandard.compress(NOT_JSON), r"named like compressed JSON lines, but line 1 is not JSON"),
        ("a.parquet", as_jsonl(ROWS), r"a\.parquet is named like a Parquet file, but holds text that looks like JSON"),
        ("a.parquet", PARQUET[: len(PARQUET) // 2], r"is broken after row 0"),
        ("a.warc", NOT_JSON, r"a\.warc is named like a WARC, but holds text"),
        ("a.warc.gz", WARC, r"named like a compressed WARC, but holds a WARC file"),
        ("a.warc.gz", gzip.compress(NOT_JSON), r"a\.warc\.gz is named like a WARC, but is broken after record 0"),
        ("a.txt", b"ab\0\1\2", r"a\.txt is named like a text file, but holds binary data"),
        ("a.txt", b"%PDF-1.7 ...", r"holds a PDF"),
        ("a.md", gzip.compress(b"x"), r"holds a gzip file"),
        ("a.html", b"\x89PNG\r\n", r"a\.html is named like an HTML file, but holds a PNG image"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path / name)
    assert "nothing was written; repair, rename or remove the file" in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.warc", "a.warc.gz"])
def test_no_message_quotes_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"Ann Miller, ann@mail.example" + b"\nBob Smith" * 20)
    with pytest.raises(DataError, match=name) as error:
        read(tmp_path / name)
    assert not any(word in str(error.value) for word in ("Ann", "mail.", "Bob"))


def test_a_bad_file_is_found_before_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.parquet").write_text("bad")
    with pytest.raises(DataError, match=r"b\.parquet"):
        next(local.read(Source(kind="local", paths=[str(tmp_path / "*")])))


def test_a_glob_without_a_match_names_source_glob_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        read("books/*.txt", name="books")
    for part in ("'books/*.txt'", "source 'books'", str(tmp_path), "correct the glob"):
        assert part in str(error.value)


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(ConfigError, match=r"a\.docx has an ending that no reader knows: use \.htm, "):
        read(tmp_path / "a.docx")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b'{"body": "x"}\n'), ("a.parquet", as_parquet([{"id": 1}]))])
def test_a_missing_text_field_names_the_fields(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"no text in a field 'content'; its fields are .*: set .*text_field"):
        read(tmp_path / name, text_field="content")


def test_text_field_chooses_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x", "text": "y"}\n')
    assert [record.content for record in read(tmp_path / "a.jsonl", text_field="body")] == ["x"]


# --- the user's own Python -------------------------------------------------------------------------------------------


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small installation: a standard library, and site-packages with one distribution."""
    files = {
        "lib/abc.py": '"""Doc of abc."""\n',
        "lib/LICENSE.txt": "Licence.",
        "lib/test/test_abc.py": '"""Left out."""\n',
        "lib/site-packages/other.py": '"""Another installation."""\n',
        "site/pkg/__init__.py": '"""Doc of pkg."""\n',
        "site/pkg/guide.rst": "Guide.",
        "site/pkg/data.bin": "no",
        "site/pkg-1.0.dist-info/METADATA": "Name: pkg\nVersion: 1.0\nLicense-Expression: BSD-3-Clause\n\nReadme.\n",
        "site/pkg-1.0.dist-info/RECORD": "pkg/__init__.py,,\npkg/guide.rst,,\n",
        "site/stray.py": '"""No owner."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "site/link").symlink_to(tmp_path / "site/pkg")
    paths = {"stdlib": "lib", "purelib": "site", "platlib": "site"}
    monkeypatch.setattr(python_env.sysconfig, "get_path", lambda name: str(tmp_path / paths[name]))
    return tmp_path


def test_python_env_yields_each_file_once_in_order_with_its_licence(installation: Path) -> None:
    records = list(sources.read(Source(kind="python_env")))
    assert [(record.url, record.form, record.license) for record in records] == [
        ("python:stdlib/LICENSE.txt", "text", "PSF-2.0"),
        ("python:stdlib/abc.py", "docstrings", "PSF-2.0"),
        ("python:site-packages/pkg/__init__.py", "docstrings", "BSD-3-Clause"),
        ("python:site-packages/pkg/guide.rst", "text", "BSD-3-Clause"),
        ("python:site-packages/pkg-1.0.dist-info/METADATA", "metadata", "BSD-3-Clause"),
        ("python:site-packages/stray.py", "docstrings", ""),
    ]


def test_python_env_reads_this_installation() -> None:
    records = sources.read(Source(kind="python_env"))
    urls = [next(records).url for _ in range(200)]
    assert urls == list(dict.fromkeys(urls))
    assert all(url.startswith("python:stdlib/") for url in urls)
    assert not any(sys.prefix in url for url in urls)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "content"), [("train.parquet", as_parquet(ROWS)), ("train.jsonl", as_jsonl(ROWS))])
def test_a_local_dataset_folder_is_streamed(tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / name).write_bytes(content)
    records = list(sources.read(Source(kind="huggingface", dataset=str(folder))))
    assert [record.content for record in records] == [row["text"] for row in ROWS]
    assert (records[0].id, records[0].license, records[0].language) == ("a", "MIT", "en")
    assert records[2].url == "huggingface:letters/train#3"


@pytest.mark.usefixtures("offline")
def test_a_missing_dataset_split_or_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/train.parquet").write_bytes(as_parquet(ROWS))
    for keys, message in (
        ({"dataset": str(tmp_path / "none")}, r"none \(config=None, split=train\) cannot be opened"),
        ({"dataset": str(tmp_path / "d"), "split": "test"}, r"split=test\) cannot be opened"),
        (
            {"dataset": str(tmp_path / "d"), "text_field": "body"},
            r"no text in a field 'body'; its fields are id, .*, url",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            list(sources.read(Source(kind="huggingface", **keys)))


@pytest.mark.usefixtures("offline")
def test_rows_that_cannot_be_read_are_named_and_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library says it of a value of another type than its column."""
    import datasets

    class Rows:
        num_shards = 1

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"text": "a"}
            raise ValueError("Failed to parse string: 'ann@mail.example' as a scalar of type int64")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Rows())
    with pytest.raises(DataError, match=r"cannot be read after row 1 \(ValueError\): mend its files") as error:
        list(sources.read(Source(kind="huggingface", dataset=str(tmp_path))))
    assert "ann@" not in str(error.value)

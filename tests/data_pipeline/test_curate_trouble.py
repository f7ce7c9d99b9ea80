"""Curation in trouble: bad input is counted or said clearly, and what must not be stored is stored nowhere.

Classifiers, limits, benchmarks and earlier collections do what was asked for."""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from conf.exits import CONFIG, DATA, ConfigError, DataError
from conf.schema import Job, Source
from data_pipeline.classify.linear import Linear
from data_pipeline.curate import curate, publish, reading
from data_pipeline.curate.road import FIRST_NEW
from data_pipeline.decontaminate import certificate
from data_pipeline.engine import records, stage
from tests.data_pipeline.invented_collection import (
    GOPHER_ALONE,
    PRIVATE,
    UNSTORABLE,
    asked,
    collect,
    digests,
    job_of,
    jsonl,
    nearly,
    parquet,
    question,
    rows,
    text,
    traces,
)
from tests.data_pipeline.test_slices import PAGES

ROOT = Path(__file__).parents[2]
LETTER = b"Ann Miller wrote home, and nobody saw her again.\n"  # what no message may quote


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about power cuts, and a disk may be busy for seconds."""
    monkeypatch.setattr(stage, "sync", lambda path: None)
    monkeypatch.setattr(publish, "sync", lambda path: None)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Over five good documents."""
    job = Job()
    job.curate.output, job.curate.work = str(tmp_path / "out"), str(tmp_path / "work")
    job.curate.thresholds = GOPHER_ALONE
    job.curate.sources = [Source(name="good", paths=[jsonl(tmp_path / "good.jsonl", of_texts(range(5)))])]
    return job


def of_texts(numbers: Any) -> list[dict[str, str]]:
    return [{"id": f"t/{n}", "text": text(n)} for n in numbers]


def card_of(output: Path | str) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(Path(output, "data_card.json").read_text())
    return card


def put(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def refused(job: Job, kind: type[Exception], *parts: str) -> None:
    """The job ends with an error that holds these patterns, quotes nothing, and publishes nothing."""
    with pytest.raises(kind) as error:
        curate(job)
    message = str(error.value)
    for part in parts:
        assert re.search(part, message), (part, message)
    assert not any(word in message for word in ("Ann Miller", text(0)[:30], LETTER.decode()[:10]))
    assert not Path(job.curate.output).exists()
    assert not Path(job.curate.output + ".partial").exists()


def also(job: Job, path: str) -> None:
    job.curate.sources.append(Source(name="bad", paths=[path]))


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["vanishes", "is replaced"])
def test_a_source_that_is_gone_when_its_turn_comes_is_named_and_what_was_read_is_kept(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    late = tmp_path / "late.jsonl"
    also(job, jsonl(late, of_texts(range(5, 10))))
    read = reading.read

    def meanwhile(task: reading.Read, folder: Path) -> dict[str, Any]:
        if task.number == FIRST_NEW + 1:
            late.unlink() if end == "vanishes" else jsonl(late, of_texts(range(20)))
        return read(task, folder)

    monkeypatch.setattr(reading, "read", meanwhile)
    wrong = "cannot be read any more" if end == "vanishes" else r"changed while .* it had \d+ bytes and has \d+"
    refused(job, DataError, str(late), wrong, "put it back as it was and start again")
    assert [path.name for path in (tmp_path / "work").glob("read-*/*")] == ["000000"]
    jsonl(late, of_texts(range(5, 10)))
    monkeypatch.setattr(reading, "read", read)
    assert curate(job)["documents_kept"] == 10


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.jsonl", b"", DataError, r"source 'bad' \(paths=.*a\.jsonl.*gave no document.*take it out"),
        ("a.jsonl", b"\n \n\n", DataError, r"source 'bad' .* gave no document"),
        ("a.parquet", b"", DataError, r"a\.parquet is named like a Parquet file, but holds an empty file \(0 bytes\)"),
        ("a.warc", b"", DataError, r"a\.warc is named like a WARC, but holds an empty file \(0 bytes\)"),
        ("a.jsonl", LETTER, DataError, r"a\.jsonl is named like JSON lines, but line 1 is not JSON"),
        ("a.jsonl", b'{"body": "Ann Miller"}\n', ConfigError, r"no text in a field 'text'; its fields are body: set"),
        ("a.docx", LETTER, ConfigError, r"a\.docx has an ending that no reader knows: use \.htm"),
    ],
)  # fmt: skip
def test_a_source_without_a_document_is_named_with_what_to_do(
    job: Job, tmp_path: Path, name: str, content: bytes, kind: type[Exception], message: str
) -> None:
    also(job, put(tmp_path / "bad" / name, content))
    refused(job, kind, message)


def test_a_glob_without_a_match_and_a_parquet_file_without_text_are_named(job: Job, tmp_path: Path) -> None:
    also(job, str(tmp_path / "none*.txt"))
    refused(job, ConfigError, r"the glob '.*none\*\.txt' of source 'bad' matches no file .*: correct the glob or put")
    job.curate.sources[1].paths = [parquet(tmp_path / "a.parquet", {"body": ["Ann Miller"]})]
    refused(job, ConfigError, r"a\.parquet has no text in a field 'text'; its fields are body: set .*text_field")
    job.curate.sources[1].paths = [parquet(tmp_path / "b.parquet", {"text": []})]
    refused(job, DataError, r"source 'bad' \(paths=.*b\.parquet.*gave no document")


def test_an_empty_text_is_a_document_that_is_empty(job: Job, tmp_path: Path) -> None:
    also(job, put(tmp_path / "a.txt", b""))
    assert curate(job)["dropped"] == {"empty": 1}


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_of_a_web_archive_that_is_cut_what_is_whole_is_read_and_the_rest_counted(
    job: Job, tmp_path: Path, name: str
) -> None:
    def page(number: int) -> bytes:
        http = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + text(800 + number).encode()
        head = PAGES[0].partition(b"Content-Length")[0].replace(b"example/0", b"example/%d" % number)
        record = head + b"Content-Length: %d\r\n\r\n" % len(http) + http + b"\r\n\r\n"
        return gzip.compress(record) if name.endswith(".gz") else record

    whole = b"".join(map(page, range(4)))
    also(job, put(tmp_path / name, whole[: -len(page(3)) // 2]))
    summary = curate(job)
    assert summary["sources"]["bad"] | {"bytes_in": 0, "bytes_kept": 0} == {
        "documents_in": 4, "documents_kept": 3, "bytes_in": 0, "bytes_kept": 0, "dropped": {"damaged": 1},
    }  # fmt: skip


ODD = ["\0", "\ud800", "\udfff\ud800", "\ufffe\ufdd0", "\U0001ffff\U0010fffe", "\x85\x07\x1b[31m", "\u2028"]


@pytest.mark.parametrize("place", ["text", "id", "url", "license", "source", "language"])
def test_characters_that_are_none_cost_themselves(job: Job, tmp_path: Path, place: str) -> None:
    """Also beside a telephone number, for which the language is asked."""
    strange = [f"b{sign}c {after}" for sign in ODD for after in ("", "+1 415-555-2671")]
    odd = [
        {"text": text(50 + n)} | {place: f"{text(50 + n)} {one}" if place == "text" else one}
        for n, one in enumerate(strange)
    ]
    also(job, jsonl(tmp_path / "odd.jsonl", odd))
    assert curate(job)["documents_kept"] == 5 + len(odd)
    for row in rows(tmp_path / "out"):
        assert not set(row[place]) & set("\0\x85\x07\x1b" if place == "text" else "\0")
        assert "415-555" not in row[place]


@contextmanager
def cheap(most_bytes: int, most_seconds: float) -> Iterator[None]:
    """What is done inside takes at most so much more memory than there is before, and processor time."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begin = _memory("VmRSS"), time.process_time()
    yield
    assert time.process_time() - begin < most_seconds
    assert _memory("VmHWM") - before < most_bytes


def _memory(name: str) -> int:
    return 1024 * int(re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[0])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt", "a.html", "a.warc"])
def test_a_document_of_500_mb_is_counted_and_takes_neither_its_memory_nor_long(
    job: Job, tmp_path: Path, name: str
) -> None:
    path, size = tmp_path / name, 500_000_000
    good = json.dumps({"text": text(60)}).encode()
    if name.endswith(".zst"):
        with zstandard.open(path, "wb") as packed:
            packed.write(good + b'\n{"text": "')
            for _ in range(500):
                packed.write(b"x" * 1_000_000)
            packed.write(b'"}\n')
    else:
        if name == "a.warc":
            begin = PAGES[0].partition(b"Content-Length")[0] + b"Content-Length: %d\r\n\r\n" % size
            begin += b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
        else:
            begin = good + b'\n{"text": "' if name == "a.jsonl" else b"words "
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(size + (begin.index(b"HTTP") if name == "a.warc" else 0))  # sparse: it takes no room
            if name == "a.warc":
                file.seek(0, 2)
                file.write(b"\r\n\r\n")
    if name in ("a.txt", "a.html"):  # not binary where one looks
        with path.open("r+b") as file:
            file.write(b"words " * 2000)
    also(job, str(path))
    with cheap(most_bytes=150_000_000, most_seconds=10):
        summary = curate(job)
    assert summary["sources"]["bad"]["dropped"] == {"too_large": 1}
    assert summary["sources"]["good"]["documents_kept"] == 5


# ---- other files -----------------------------------------------------------------------------------------------------

MODEL = Linear(np.zeros(1024, np.float32), 0.0, False, 1.0, 0.0).dump()
DEEP = b"[" * 100_000
FILES = {
    "harm.blocked": ("list.txt", r"list\.txt", "get it again|check the path|mend"),
    "harm.prohibited": ("list.txt", r"list\.txt", "get it again|check the path|mend"),
    "harm.lexicons": ("lexicon.txt", r"lexicon\.txt", "complete it|check the path|mend"),
    "quality.model": (
        "model.npz",
        r"the classifier .*model\.npz cannot be used",
        "correct the path, or train it again",
    ),
    "toxicity.model": (
        "model.npz",
        r"the classifier .*model\.npz cannot be used",
        "correct the path, or train it again",
    ),
    "calibrated": (
        "limits.json",
        r"the limits in .*limits\.json cannot be used",
        "correct the path, or take them again",
    ),
    "decontaminate.benchmarks": ("mill.jsonl", r"mill\.jsonl", "correct the path|repair the|convert the file"),
    "private.key_file": ("key", r"curate\.private\.key_file=.*key holds", "pseudonyms need a secret of 16 or more"),
    "previous": ("before/data_card.json", r"before/data_card\.json", r"correct curate\.previous"),
    "duplicates.earlier": ("before/manifest.json", r"before/manifest\.json", r"name folders of curated text in "),
}
BROKEN = {
    "empty": b"",
    "binary": bytes(range(256)) * 4,
    "deep": DEEP,
    "cut": b'{"format": 2, "question": "Ann Miller wrote',
}
CASES = [
    (key, how)
    for key in FILES
    for how in BROKEN
    if not (how == "deep" and key[:4] in ("harm", "priv", "qual", "toxi")) and (key, how) not in (
        ("private.key_file", "binary"), ("private.key_file", "cut"),  # as good a secret as any
    )
]  # fmt: skip


def name_file(job: Job, key: str, path: Path) -> None:
    *sections, name = key.split(".")
    section = getattr(job.curate, sections[0]) if sections else job.curate
    if path.parent.name == "before":
        path = path.parent
    many: dict[str, Any] = {"benchmarks": {"mill": str(path)}}
    setattr(section, name, many.get(name, [str(path)] if isinstance(getattr(section, name), list) else str(path)))


@pytest.mark.parametrize(("key", "how"), CASES)
def test_a_file_that_is_not_what_it_should_be_is_named_with_what_to_do(
    job: Job, tmp_path: Path, key: str, how: str
) -> None:
    name, wrong, remedy = FILES[key]
    name_file(job, key, Path(put(tmp_path / "bad" / name, BROKEN[how])))
    refused(job, (ConfigError if key == "private.key_file" else DataError), wrong, remedy)


@pytest.mark.parametrize("key", FILES)
def test_a_file_that_is_missing_is_named_before_anything_is_read(job: Job, tmp_path: Path, key: str) -> None:
    name = FILES[key][0]
    name_file(job, key, tmp_path / "bad" / name)
    refused(job, DataError if key == "previous" else ConfigError, rf"curate\.{key}", "/bad/", "correct")
    assert not list((tmp_path / "work").glob("read-*/*"))


@pytest.mark.parametrize(
    ("key", "content", "wrong"),
    [
        ("harm.blocked", b"blocked.example\nAnn Miller\n", r"list\.txt:2 is neither a domain, a URL nor a SHA-256"),
        ("harm.lexicons", b"minor child\nAnn Miller\n", r"lexicon\.txt:2 is not `minor TERM` or `sexual TERM`: mend"),
        ("harm.lexicons", b"minor zorblings\n", r"lexicon\.txt holds no term behind `sexual`, so it names nothing"),
        ("quality.model", MODEL[:-3], r"model\.npz is no classifier of ours"),
        ("quality.model", MODEL[: len(MODEL) // 2], r"model\.npz is no classifier of ours"),
        ("quality.model", MODEL[:900] + b"\xff" + MODEL[901:], r"model\.npz is no classifier of ours: Bad CRC"),
        ("calibrated", b"[]", "the key languages is missing"),
        ("calibrated", b'{"format": 1, "languages": {"en": {}}}', "en: needs the keys documents"),
        ("private.key_file", b"short", "holds 5 bytes"),
        ("decontaminate.benchmarks", b'{"question": ' + b"1" * 5000 + b"}", "line 1: no item"),
        ("decontaminate.benchmarks", b'{"note": 3}\n', "no item of benchmark 'mill'"),
        ("previous", b"[]", "holds no data card"),
        ("previous", b'{"format": 2, "lineage": "1", "config": {}, "counts": {}}', "holds no data card"),
        ("previous", b"{}", "has format None"),
        ("duplicates.earlier", b'{"kind": "tokens"}', "holds something else than curated text: choose another"),
        ("duplicates.earlier", b'{"kind": "curated_text", "format": 1}', "lacks config, counts, files"),
        ("duplicates.earlier", b'{"kind": "curated_text", "format": 99}', "has format 99, this version reads up to 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_said(job: Job, tmp_path: Path, key: str, content: bytes, wrong: str) -> None:
    name_file(job, key, Path(put(tmp_path / "bad" / FILES[key][0], content)))
    refused(job, ConfigError if "key_file" in key or "something else" in wrong else DataError, wrong)


@pytest.mark.parametrize("damage", ["cut", "a page", "the footer"])
def test_a_benchmark_in_parquet_that_is_damaged_is_named(job: Job, tmp_path: Path, damage: str) -> None:
    path = Path(parquet(tmp_path / "mill.parquet", {"question": [question(n) for n in range(50)]}))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "a page":
        content[60:90] = bytes(30)
    else:
        content[-60:-20] = b"\xff" * 40
    path.write_bytes(content)
    job.curate.decontaminate.benchmarks = {"mill": str(path)}
    refused(job, DataError, r"mill\.parquet does not read as parquet", "get the file again")


@pytest.mark.parametrize("damage", ["missing", "cut", "one bit"])
def test_a_damaged_part_of_earlier_text_is_named_and_what_was_read_is_kept(
    job: Job, tmp_path: Path, damage: str
) -> None:
    earlier = tmp_path / "earlier"
    job.curate.output = str(earlier)
    curate(job)
    part = earlier / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.unlink()  # it is the same file as in the work folder
    if damage != "missing":
        part.write_bytes(content if damage == "one bit" else content[:-100])
    job.curate.output, job.curate.duplicates.earlier = str(tmp_path / "out"), [str(earlier)]
    refused(job, DataError, r"earlier/part-00000\.parquet of earlier curated text (cannot be read|has the SHA-256)")
    assert len(list((tmp_path / "work").glob("read-*/*"))) == 1  # by both: earlier text changes nothing of it


def test_codes_of_the_command_tell_configuration_from_data(tmp_path: Path) -> None:
    jsonl(tmp_path / "good.jsonl", of_texts(range(5)))
    put(tmp_path / "list.txt", LETTER)
    for more, code, said in (
        (f"curate.private.key_file={tmp_path}/none", CONFIG, "none cannot be read (No such file or directory)"),
        (f"curate.harm.blocked=[{tmp_path}/list.txt]", DATA, "list.txt:1 is neither a domain"),
    ):
        command = [
            sys.executable, "-m", "data_pipeline", "curate", f"curate.sources=[{{paths: ['{tmp_path}/good.jsonl']}}]",
            f"curate.output={tmp_path}/out", more,
        ]  # fmt: skip
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == code
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith("gemcutter curate: ")
        assert said in ended.stderr


# ---- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def full_at(largest: int) -> Iterator[None]:
    """No file may become larger: as a full disk, for which a system of files of its own is needed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("where", ["read", "write"])
def test_a_full_disk_is_said_and_costs_one_task(job: Job, tmp_path: Path, where: str) -> None:
    """Many small parts are read into one that is written."""
    job.curate.sources[0].paths = [jsonl(tmp_path / "many.jsonl", of_texts(range(150)))]
    job.curate.slice_bytes = 20_000
    with full_at({"read": 20_000, "write": 40_000}[where]):
        refused(job, DataError, "File too large", "nothing was published", "free space", str(tmp_path / "work"))
    stages = {path.parent.name.split("-")[0] for path in (tmp_path / "work").glob("*/*")}
    assert ("settle" in stages) == (where == "write")
    assert not list((tmp_path / "work").rglob("*.attempt"))
    assert curate(job)["documents_kept"] == 150


@pytest.mark.parametrize("count", [40, 400_000])
@pytest.mark.parametrize("largest", [100, 200, 500])
def test_an_array_that_does_not_fit_on_the_disk_is_never_taken_for_written(
    tmp_path: Path, count: int, largest: int
) -> None:
    """NumPy itself says nothing where the last block did not fit."""
    with full_at(largest), pytest.raises(OSError, match="File too large") as error:
        records.save(tmp_path / "a.npy", np.zeros(count, np.dtype([("key", np.uint64), ("more", np.uint64)])))
    assert error.value.errno in publish.DISK_TROUBLE


@pytest.mark.parametrize(
    ("output", "work", "key"),
    [("/sys/kernel/text", "{}/work", "curate.output"), ("/sys/kernel/text", None, "curate.output"),
     ("{}/out", "/sys/kernel/work", "curate.work"), ("{}/good.jsonl/out", None, "curate.output")],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_named_with_its_key(
    job: Job, tmp_path: Path, output: str, work: str | None, key: str
) -> None:
    job.curate.output = output.format(tmp_path)
    job.curate.work = work and work.format(tmp_path)
    with pytest.raises(ConfigError, match=rf"^{key}: /.* cannot be made \(.*\): choose another folder$"):
        curate(job)


# ---- what must not be stored -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, curated into `out` with all that was done in `work`."""
    folder = tmp_path_factory.mktemp("collected")
    collect(folder)
    job = job_of(folder, folder / "out")
    job.curate.work = str(folder / "work")
    curate(job)
    return folder


@pytest.mark.parametrize("place", ["work", "out"])
def test_what_must_not_be_stored_leaves_its_count_and_no_trace(collected: Path, place: str) -> None:
    assert not traces(collected / place, [*UNSTORABLE, *PRIVATE])
    assert traces(collected / place, ["river", "asked/0"])  # this does find what is there
    card = card_of(collected / "out")
    assert card["counts"]["dropped"]["prohibited"] == 2
    assert "prohibited" not in card["samples"]
    assert {"reason": "prohibited", "documents": 2, "bytes": 0} in card["funnel"]


@pytest.mark.parametrize(
    "record",
    [
        '{"id": "wexford", "text": "zorblings are quaxish in wexford',
        '{"id": "wexford", "text": "zorblings\\nquaxish wexford',
        '{"id": "wexford", "text": "\\u007aorblings \\u0071uaxish wexford',
        '{"id": "wexford", "url": "https:\\/\\/vexatious.example\\/wexford", "text": "torn',
        '{"id": "wexford", "text": 7, "url": "https://vexatious.example/wexford"}',
        '{"id": "wexford", "text": " ", "url": "https://vexatious.example/wexford"}',
        '["wexford", "zorblings", "quaxish"]',
    ],
)
def test_rejected_records_too_leave_no_trace(job: Job, tmp_path: Path, record: str) -> None:
    job.curate.harm.lexicons = [put(tmp_path / "lists" / "lexicon", b"minor zorblings\nsexual quaxish\n")]
    job.curate.harm.prohibited = [put(tmp_path / "lists" / "prohibited", b"vexatious.example\n")]
    also(job, jsonl(tmp_path / "bad.jsonl", [{"id": "good", "text": text(9)}, record]))
    (dropped,) = curate(job)["dropped"].items()
    assert dropped in (("prohibited", 1), ("broken_record", 1))  # of what cannot be read nothing is kept but its place
    for folder in ("work", "out"):
        assert not traces(tmp_path / folder, ["wexford", "zorblings", "vexatious"])
        assert traces(tmp_path / folder, ["t/1"])


@pytest.mark.parametrize("url", ["https://vexatious.example/wexford", "https://a.example/wexford"])
def test_pages_that_were_not_read_are_named_only_where_they_may_be(job: Job, tmp_path: Path, url: str) -> None:
    """A page that is too large, and one that is no page."""
    job.curate.harm.prohibited = [put(tmp_path / "lists" / "prohibited", b"vexatious.example\n")]
    job.curate.extract.largest_bytes = 10_000
    pages = []
    for kind, size in (("text/plain", 200_000), ("image/png", 20)):
        http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode() + b"w " * (
            size // 2
        )
        pages.append(PAGES[0].partition(b"Content-Length")[0].replace(b"http://a.example/0", url.encode()))
        pages[-1] += b"Content-Length: %d\r\n\r\n" % len(http) + http + b"\r\n\r\n"
    also(job, put(tmp_path / "a.warc", b"".join(pages)))
    summary = curate(job)
    found = traces(tmp_path / "work", ["wexford"])
    if "vexatious" in url:
        assert summary["dropped"]["prohibited"] >= 1
        assert not found
    else:
        assert summary["dropped"] == {"too_large": 1, "content_type": 1}
        assert found


# ---- earlier collections ---------------------------------------------------------------------------------------------


def test_what_an_earlier_collection_holds_goes_exactly_and_nearly_and_nothing_else(job: Job, tmp_path: Path) -> None:
    job.curate.part_bytes = 5_000
    job.curate.sources[0].paths = [jsonl(tmp_path / "first.jsonl", of_texts(range(20)))]
    job.curate.output = str(tmp_path / "first")
    assert curate(job)["parts"] > 2
    before = digests(tmp_path / "first")
    new = [{"id": f"copy/{n}", "text": text(n).replace(" ", "  ", 3)} for n in range(5)]
    new += [{"id": f"near/{n}", "text": nearly(n)} for n in range(5, 9)]
    new += [{"id": f"t/{n}", "text": text(1000 + n)} for n in range(10)]  # as documents of the first are called
    new += [{"id": "t/3", "text": text(1003)}, {"id": "near/1004", "text": nearly(1004)}]
    random.Random(0).shuffle(new)
    job.curate.sources[0].paths = [jsonl(tmp_path / "second.jsonl", new)]
    job.curate.output, job.curate.duplicates.earlier = str(tmp_path / "second"), [str(tmp_path / "first")]
    summary = curate(job)
    assert (summary["documents_in"], summary["documents_kept"]) == (21, 10)
    assert summary["dropped"] == {"exact_duplicate": 6, "near_duplicate": 5}
    assert card_of(tmp_path / "second")["duplicates"]["earlier"] == ["first"]
    assert "Compared with earlier collections, too: " in (tmp_path / "second" / "data_card.html").read_text()
    kept = rows(tmp_path / "second")
    assert (
        sorted(row["text"] == text(1000 + int(row["id"].split("/")[1].split("~")[0])) for row in kept)[1:] == [True] * 9
    )
    gone = Counter((row["id"].split("/")[0], row["reason"]) for row in rows(tmp_path / "second" / "removed"))
    assert gone["copy", "exact_duplicate"] == 5
    assert gone["near", "near_duplicate"] >= 4
    assert len({row["id"] for row in kept}) == 10
    assert Counter(row["exact_copies"] for row in kept) == {1: 9, 2: 1}
    assert Counter(row["near_copies"] for row in kept) == {1: 9, 2: 1}
    assert digests(tmp_path / "first") == before


# ---- classifiers and limits ------------------------------------------------------------------------------------------


def salad(number: int) -> str:
    """What no good document is like: other words, and few of those that hold sentences together."""
    draw = random.Random(f"salad {number}")
    words = re.findall(
        r"\w+",
        "buy cheap deals online bonus click discount offer shipping winner casino free today cash prize subscribe "
        "credit loan price best order limited exclusive gift coupon save trial instant member vip",
    )
    offered = " ".join(draw.choice(words) for _ in range(40))
    return f"{offered}. The offer and the price of it are to be with you that day."


def test_classifiers_and_limits_are_made_used_and_used_again(job: Job, tmp_path: Path) -> None:
    good = [
        Source(name="fine", paths=[jsonl(tmp_path / "fine.jsonl", ({"text": text(5000 + n, 3)} for n in range(600)))])
    ]
    bad = [Source(name="salad", paths=[jsonl(tmp_path / "salad.jsonl", ({"text": salad(n)} for n in range(600)))])]
    mixed = [{"id": f"good/{n}", "text": text(8000 + n)} for n in range(10)]
    mixed += [{"id": f"salad/{n}", "text": " ".join(salad(9000 + 9 * n + k) for k in range(3))} for n in range(10)]
    keys = job.curate
    keys.sources = [Source(name="mixed", paths=[jsonl(tmp_path / "mixed.jsonl", mixed)])]
    keys.quality.good, keys.quality.bad, keys.quality.least = good, bad, 0.5
    keys.reference = good
    curate(job)
    card, first = card_of(keys.output), rows(tmp_path / "out")
    assert {row["id"].split("/")[0] for row in first} == {"good"}
    assert len(first) == 10
    assert card["counts"]["dropped"]["low_quality"] >= 5  # of the others some break a limit of the reference set before
    report = card["classifiers"]["quality"]
    assert report["held_out"]["accuracy"] > 0.95
    assert {one["source"] for one in report["sources"]} == {"fine", "salad"}
    assert card["calibrated"] == {"en": 600}
    assert (tmp_path / "out" / "calibrated.json").is_file()

    # Toxicity by a classifier trained of the same, quality and limits by what the first left.
    keys.output = str(tmp_path / "again")
    keys.quality.good, keys.quality.bad, keys.quality.model = [], [], str(tmp_path / "out" / "quality.npz")
    keys.reference, keys.calibrated = [], str(tmp_path / "out" / "calibrated.json")
    keys.quality.least, keys.toxicity.toxic, keys.toxicity.clean, keys.toxicity.most = None, bad, good, 0.5
    curate(job)
    other = card_of(keys.output)
    assert other["counts"]["dropped"]["toxic"] >= 5
    assert "low_quality" not in other["counts"]["dropped"]
    assert set(other["classifiers"]) == {"toxicity"}
    assert other["classifiers"]["toxicity"]["held_out"]["accuracy"] > 0.95
    scores = [{row["id"]: row["quality"] for row in found} for found in (first, rows(tmp_path / "again"))]
    assert scores[0] == scores[1]
    assert (other["calibrated"], other["thresholds"]) == (card["calibrated"], card["thresholds"])
    assert digests(tmp_path / "again")["calibrated.json"] == digests(tmp_path / "out")["calibrated.json"]


def test_other_reference_documents_are_measured_by_their_own_stop_words(job: Job, tmp_path: Path) -> None:
    """In the same work folder: what was measured by the stop words of the first is not taken for it."""
    keys = job.curate
    reference = [{"text": text(n)} for n in range(120)] + [
        {"text": f"{text(n)} Thus spake one." * 3} for n in range(120, 240)
    ]
    keys.reference = [Source(paths=[jsonl(tmp_path / "reference.jsonl", reference)], limit_bytes=110_000)]
    keys.output = str(tmp_path / "first")
    curate(job)
    keys.reference[0].limit_bytes = None
    curate_again = str(tmp_path / "second")
    keys.output = curate_again
    curate(job)
    keys.work, keys.output = str(tmp_path / "fresh.work"), str(tmp_path / "fresh")
    curate(job)
    assert digests(tmp_path / "second") == digests(tmp_path / "fresh") != digests(tmp_path / "first")


def test_too_few_documents_for_a_classifier_are_said(job: Job) -> None:
    job.curate.quality.good = job.curate.quality.bad = job.curate.sources
    refused(job, ConfigError, r"curate\.quality: no classifier can be trained: ", "name more sources")


# ---- benchmarks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["drop", "cut"])
def test_benchmarks_are_kept_out_and_the_certificate_counts_what_was_planted(
    job: Job, tmp_path: Path, action: str
) -> None:
    questions = ({"question": question(n), "answer": f"{n} crowns"} for n in range(20))
    job.curate.decontaminate.benchmarks = {"mill": jsonl(tmp_path / "mill.jsonl", questions)}
    job.curate.decontaminate.action = action
    planted = [{"id": f"asked/{n}", "text": asked(200 + n, n % 6)} for n in range(8)]
    limited = [*of_texts(range(20, 40)), {"id": "asked/late", "text": asked(300, 15)}]
    limited.insert(1, {"id": "asked/early", "text": asked(301, 16)})
    also(job, jsonl(tmp_path / "planted.jsonl", planted))
    size = sum(len(row["text"].encode()) for row in limited[:10])
    job.curate.sources.append(
        Source(name="limited", paths=[jsonl(tmp_path / "limited.jsonl", limited)], limit_bytes=size)
    )
    job.curate.slice_bytes = 30_000  # the task that reads the end of the limited source reads more than that
    summary = curate(job)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = manifest["decontamination"]
    certificate.check(found)
    assert found == card_of(tmp_path / "out")["contamination"]
    mill = found["benchmarks"]["mill"]
    assert (found["action"], found["documents"], mill["items"]) == (action, summary["documents_in"], 20)
    assert summary["documents_in"] == 5 + 8 + 10
    assert mill["contaminated_documents"]["clusters"] == 9
    assert mill["contaminated_items"]["clusters"] == 7
    assert mill["contaminated_fraction"] == 7 / 20
    kept = {row["id"]: row["text"] for row in rows(tmp_path / "out")}
    assert summary["dropped"] == ({"contaminated": 9} if action == "drop" else {})
    assert len(kept) == (14 if action == "drop" else 23)
    assert not any(question(n)[:-1] in one for n in range(20) for one in kept.values())
    if action == "cut":
        assert all(kept[f"asked/{n}"].startswith(text(200 + n)[:60]) for n in range(8))
    found["documents"] += 1
    with pytest.raises(DataError, match="it was changed"):
        certificate.check(found)

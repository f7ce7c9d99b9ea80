"""Promises of reading files: what comes is what was asked for, whatever the server does, or an error says where."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from conf.exits import ConfigError, DataError
from data_pipeline import files as module
from data_pipeline.disk_cache import DiskCache
from data_pipeline.files import Files, Range, redacted, split
from tests.data_pipeline.hostile_http import HostileServer

DATA = os.urandom(200_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HostileServer]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tar").write_bytes(DATA)
    with HostileServer(folder).running() as made:
        yield made


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(module, "_sleep", slept.append)
    monkeypatch.setattr(module, "_STALL_SECONDS", 0.5)
    return slept


def wanted(start: int, end: int, name: str = "a.tar") -> Range:
    return Range(name, start, end, hashlib.sha256(DATA[start:end]).hexdigest(), "block 7", "copy it again")


def opened(server: HostileServer, cache: DiskCache | None = None) -> Files:
    storage, name = Files.open(f"{server.url}/a.tar", cache)
    assert name == "a.tar"
    assert not storage.local
    return storage


RANGES = [wanted(0, 50_000), wanted(50_000, 50_001), wanted(120_000, 200_000)]


@pytest.mark.parametrize("fault", ["truncate", "short", "stall", "500", "503", "flip", "reset"])
def test_an_answer_that_fails_is_fetched_again(server: HostileServer, fault: str, waits: list[float]) -> None:
    """Truncated, short, stalled, refused, changed or cut off: the bytes are right, and the faults are counted."""
    server.faults["a.tar"].extend([fault] * 4)
    storage = opened(server)
    assert storage.read_ranges(RANGES) == [DATA[r.start : r.end] for r in RANGES]
    assert storage.counts.retries + storage.counts.refetched == 4 or fault == "short"  # half of one byte is none
    assert (storage.counts.refetched > 0) == (fault in ("short", "flip"))
    assert len(waits) >= 2
    assert storage.counts.bytes_fetched == sum(r.end - r.start for r in RANGES)


def test_waits_grow(server: HostileServer, waits: list[float]) -> None:
    server.always["a.tar"] = "500"
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:\d+/a\.tar, bytes 0 to 9 \(block 7\) cannot be read "
                       r"\(.*500.*; 6 tries\): copy it again"):  # fmt: skip
        opened(server).read_ranges([wanted(0, 9)])
    assert server.requests["a.tar"] == 6
    assert [0.5 * 2**n * 0.5 <= wait <= 0.5 * 2**n for n, wait in enumerate(waits)] == [True] * 5


@pytest.mark.parametrize("fault", ["404", "403"])
def test_what_is_not_there_or_not_allowed_is_asked_for_once(server: HostileServer, fault: str) -> None:
    server.always["a.tar"] = fault
    with pytest.raises(DataError, match=r"a\.tar.*cannot be read \(.*; 1 try\)"):
        opened(server).read("a.tar")
    assert server.requests["a.tar"] == 1


def test_only_a_missing_file_counts_as_none(server: HostileServer) -> None:
    storage = opened(server)
    assert storage.find("b.tar") is None
    server.always["b.tar"] = "503"  # a server in trouble does not say that there is no file
    with pytest.raises(DataError, match="503"):
        storage.find("b.tar")


def test_a_rotten_origin_is_named_and_its_bytes_are_kept(server: HostileServer, tmp_path: Path) -> None:
    server.always["a.tar"] = "flip"
    cache = DiskCache(tmp_path / "cache", 10**6)
    storage = opened(server, cache)
    with pytest.raises(
        DataError, match=r"the bytes are not those of the manifest: sha256 \w+, expected \w+, kept in .*quarantine"
    ):
        storage.read_ranges([wanted(0, 1000)])
    (evidence,) = (tmp_path / "cache" / "quarantine").iterdir()
    assert evidence.read_bytes() == DATA[:500] + bytes([DATA[500] ^ 4]) + DATA[501:1000]
    assert storage.counts.quarantined == 1
    assert cache.get(wanted(0, 1000).sha256 or "") is None  # never served


def test_what_was_read_is_read_from_disk(server: HostileServer, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 10**6)
    assert opened(server, cache).read_ranges(RANGES) == opened(server, cache).read_ranges(RANGES)
    assert server.requests["a.tar"] == len(RANGES)
    again = opened(server, cache)
    again.read_ranges(RANGES)
    assert again.counts.cache_hits == len(RANGES)


def test_a_disk_that_forgets_is_noticed(server: HostileServer, tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", 10**6)
    opened(server, cache).read_ranges(RANGES[:1])
    (kept,) = (tmp_path / "cache").glob("??/*")
    kept.write_bytes(b"\0" + kept.read_bytes()[1:])
    storage = opened(server, cache)
    assert storage.read_ranges(RANGES[:1]) == [DATA[:50_000]]
    assert storage.counts.quarantined == 1


def test_two_buckets_with_the_same_file_names_do_not_collide(server: HostileServer, tmp_path: Path) -> None:
    """webdataset #471: its cache served bucket A's shard for bucket B, as both had the same name."""
    cache, read = DiskCache(tmp_path / "cache", 10**6), []
    for bucket in ("one", "two"):
        (server.folder / bucket).mkdir()
        data = bucket.encode() * 1000
        (server.folder / bucket / "shard-00000.tar").write_bytes(data)
        storage, name = Files.open(f"{server.url}/{bucket}/shard-00000.tar", cache)
        read += storage.read_ranges([Range(name, 0, len(data), hashlib.sha256(data).hexdigest())])
    assert read == [b"one" * 1000, b"two" * 1000]


def test_a_token_of_the_manifest_goes_with_every_file(server: HostileServer) -> None:
    storage, name = Files.open(f"{server.url}/m.json?sig=abc")
    assert name == "m.json"
    assert storage.read_ranges(RANGES) == [DATA[r.start : r.end] for r in RANGES]
    assert set(server.queries) == {"sig=abc"}


def test_a_server_that_sends_the_whole_file_is_understood(server: HostileServer) -> None:
    server.always["a.tar"] = "whole"
    assert opened(server).read_ranges(RANGES) == [DATA[r.start : r.end] for r in RANGES]


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "pipe:curl http://x/a.tar", "pipe://cat"])
def test_no_shell_is_ever_run(url: str) -> None:
    """webdataset runs `pipe:` by default."""
    with pytest.raises(ConfigError, match=r"no shell is ever run"):
        Files.open(url)
    with pytest.raises(ConfigError, match=r"no shell is ever run"):
        Files.open("/tmp/manifest.json")[0].read_ranges([Range(url, 0, 1, None)])


def test_addresses_with_colons_are_no_chains() -> None:
    assert split("http://[::1]:80/a") == ("http", "[::1]:80/a")
    assert split("/data/a::b/manifest.json") == (None, "/data/a::b/manifest.json")


@pytest.mark.parametrize("url", ["simplecache::http://h/a", "ssh://h/a", "github://o:r@/a", "zip://a::file://b"])
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is not read: name a path, or a URL that begins with one of file://.*s3://"):
        Files.open(url)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"gs:// needs a package.*pip install 'gemcutter\[gcs\]'"):
        Files.open("gs://bucket/manifest.json")


def test_secrets_are_not_told(server: HostileServer) -> None:
    server.always["a.tar"] = "403"
    storage, _ = Files.open(server.url.replace("//", "//me:hunter2@") + "/a.tar")
    for fault in ("403", "404", "500"):
        server.always["a.tar"] = fault
        with pytest.raises(DataError, match=r"a\.tar") as caught:
            storage.read("a.tar?token=s3cr3t")
        told = "".join(traceback.format_exception(caught.value, chain=True)) + repr(storage)
        assert "hunter2" not in told.replace('storage.read("', "")
        assert "=s3cr3t" not in told.replace('read("a.tar?token=s3cr3t")', "")
    assert redacted("see http://u:p@h/x?sig=abc, again") == "see http://...@h/x?..., again".replace(", again", " again")


def test_a_tree_is_redacted_by_names_too() -> None:
    said = {
        "tokens_per_step": 4,
        "tokenizer": "path",
        "key": "data.manifest",
        "hf_token": "abc",
        "nested": {"password": "abc", "secret": None, "api_key": "", "places": ["s3://u:abc@h/x", "gs://h/x"]},
    }
    assert redacted(said) == {
        "tokens_per_step": 4,
        "tokenizer": "path",
        "key": "data.manifest",
        "hf_token": "...",
        "nested": {"password": "...", "secret": None, "api_key": "", "places": ["s3://...@h/x", "gs://h/x"]},
    }


def test_what_was_redacted_is_not_read() -> None:
    for url in ("https://u:p@h/x", "https://h/x?sig=p"):
        with pytest.raises(ConfigError, match="lacks what is secret in it"):
            Files.open(redacted(url))


def test_memory_and_local_files_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    with fsspec.open("memory://folder/a.tar", "wb") as file:
        file.write(DATA)
    for url in (str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar", "memory://folder/a.tar"):
        storage, name = Files.open(url)
        assert storage.read_ranges(RANGES) == [DATA[r.start : r.end] for r in RANGES]
        assert storage.read(name) == DATA
        assert storage.find("b.tar") is None
        assert storage.sizes() == {"a.tar": len(DATA)}
        assert pickle.loads(pickle.dumps(storage)).read(name) == DATA  # noqa: S301  # our own bytes, to a worker


def test_files_of_other_folders_are_read_by_their_own_names(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(DATA)
    (tmp_path / "index").mkdir()
    storage, _ = Files.open(str(tmp_path / "index" / "manifest.json"))
    names = [f"{server.url}/a.tar", str(tmp_path / "a.tar"), "../a.tar"]
    assert storage.read_ranges([wanted(5, 900, name) for name in names]) == [DATA[5:900]] * 3


def test_a_truncated_local_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(DATA[:1000])
    storage, _ = Files.open(str(tmp_path / "a.tar"))
    with pytest.raises(
        DataError, match=r"a\.tar, bytes 0 to 50,000 \(block 7\) cannot be read \(1,000 bytes came where"
    ):
        storage.read_ranges(RANGES[:1])

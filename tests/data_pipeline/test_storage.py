"""Promises of storage: what comes back is what was asked for, whatever the server does, or an error says why not."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.exits import ConfigError, DataError
from data_pipeline import storage as module
from data_pipeline.cache import Cache
from data_pipeline.storage import Counts, Range, Storage, redacted
from tests.data_pipeline import hostile_server as hostile
from tests.data_pipeline.hostile_server import HostileServer, flipped

SHARD = random.Random(0).randbytes(20_000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def part(start: int, end: int, name: str = "a.tar", data: bytes = SHARD) -> Range:
    return Range(name, start, end, sha256(data[start:end]))


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer({"/bucket/a.tar": SHARD, "/bucket/manifest.json": b"{}"}) as running:
        yield running


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of them waited for; a server has stalled after a moment."""
    made: list[float] = []
    monkeypatch.setattr(module, "_pause", made.append)
    monkeypatch.setattr(module, "_SILENCE_TIMEOUT", 0.3)
    return made


@pytest.fixture
def storage(server: HostileServer) -> Storage:
    return Storage.open(server.url("/bucket/manifest.json"))[0]


def test_ranges_come_in_the_order_asked_for(server: HostileServer, storage: Storage) -> None:
    ranges = [part(start, start + 100) for start in random.Random(1).sample(range(19_000), 100)]
    assert storage.read_ranges(ranges) == [SHARD[r.start : r.end] for r in ranges]
    assert storage.counts == Counts(bytes_fetched=10_000)
    assert server.requests["/bucket/a.tar"] == 100
    assert not storage.local


def test_a_truncated_answer_is_fetched_again(server: HostileServer, storage: Storage) -> None:
    server.fail("/bucket/a.tar", hostile.TRUNCATE, hostile.TRUNCATE)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    server.fail("/bucket/a.tar", hostile.TRUNCATE)
    assert storage.read("a.tar") == SHARD  # without a digest, by the length that was declared
    assert storage.counts.retries == 3
    assert server.requests["/bucket/a.tar"] == 5


@pytest.mark.parametrize("fault", [hostile.STALL, hostile.STALL_IN_BODY])
def test_a_stalled_server_is_left_and_asked_again(server: HostileServer, storage: Storage, fault: str) -> None:
    server.fail("/bucket/a.tar", fault)
    assert storage.read_ranges([part(0, 1000), part(500, 900)]) == [SHARD[:1000], SHARD[500:900]]
    server.fail("/bucket/a.tar", fault)
    assert storage.read("a.tar", sha256(SHARD)) == SHARD
    assert storage.counts.retries == 2


def test_500_is_retried_with_backoff(server: HostileServer, storage: Storage, pauses: list[float]) -> None:
    server.fail("/bucket/a.tar", 500, 503, 500, 503)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    assert storage.counts.retries == 4
    for pause, longest in zip(pauses, [0.5, 1.0, 2.0, 4.0], strict=True):
        assert longest / 2 <= pause <= longest


def test_pauses_have_a_longest_and_are_not_all_alike(pauses: list[float]) -> None:
    state = random.getstate()
    for _ in range(20):
        module._wait(12)
    assert len(set(pauses)) == 20
    assert all(15 <= pause <= 30 for pause in pauses)
    assert random.getstate() == state  # a run's own random numbers are not touched


def test_only_what_failed_is_asked_for_again(server: HostileServer, storage: Storage) -> None:
    ranges = [part(start, start + 1000) for start in range(0, 20_000, 1000)]
    storage.read_ranges(ranges[:1])
    server.fail("/bucket/a.tar", 500, hostile.FLIP, hostile.SHORT)
    assert storage.read_ranges(ranges) == [SHARD[r.start : r.end] for r in ranges]
    assert server.requests["/bucket/a.tar"] == 1 + 20 + 3
    assert storage.counts == Counts(retries=1, refetched=2, bytes_fetched=1000 + 18_500 + 3000)


def test_a_server_that_stays_away_is_an_error_that_says_all(server: HostileServer, storage: Storage) -> None:
    server.always("/bucket/a.tar", 503)
    with pytest.raises(DataError) as caught:
        storage.read_ranges([part(1024, 2048)])
    text = str(caught.value)
    assert f"a.tar in {server.url('/bucket')}, bytes 1,024 to 2,048 cannot be read: 5 tries" in text
    assert "ClientResponseError: 503" in text
    assert "start the same command again" in text
    assert type(caught.value.__cause__).__name__ == "ClientResponseError"
    assert server.requests["/bucket/a.tar"] == 5


def test_a_reset_connection_is_asked_again(server: HostileServer, storage: Storage) -> None:
    server.fail("/bucket/a.tar", *[hostile.RESET] * 3)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    assert storage.counts.retries >= 1  # the library below asks once more on its own


def test_a_server_that_is_not_there_is_an_error() -> None:
    with HostileServer() as gone:
        url = gone.url("/bucket/manifest.json")
    storage, name = Storage.open(url)
    for ask in (lambda: storage.read(name), lambda: storage.exists(name)):
        with pytest.raises(DataError, match=r"manifest.json in .* cannot be read: 5 tries.*Cannot connect"):
            ask()


def test_a_flipped_bit_on_the_wire_is_fetched_again(server: HostileServer, storage: Storage) -> None:
    server.fail("/bucket/a.tar", hostile.FLIP, hostile.FLIP)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    server.fail("/bucket/a.tar", hostile.FLIP)
    assert storage.read("a.tar", sha256(SHARD)) == SHARD
    assert (storage.counts.refetched, storage.counts.retries) == (3, 0)


def test_a_rotten_origin_is_an_error_that_names_it_and_keeps_evidence(server: HostileServer, tmp_path: Path) -> None:
    rotten = server.files["/bucket/a.tar"] = flipped(SHARD, bit=8 * 1500)
    storage, _ = Storage.open(server.url("/bucket/manifest.json"), Cache(tmp_path, 10**6))
    with pytest.raises(DataError) as caught:
        storage.read_ranges([part(0, 1000), part(1000, 2000)])
    text = str(caught.value)
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert f"a.tar in {server.url('/bucket')}, bytes 1,000 to 2,000" in text
    assert sha256(SHARD[1000:2000]) in text
    assert sha256(rotten[1000:2000]) in text
    assert "corrupt" in text
    assert str(kept) in text
    assert "gemcutter skip RUN --block SHARD:NUMBER" in text
    assert kept.read_bytes() == rotten[1000:2000]
    assert (storage.counts.quarantined, storage.counts.refetched) == (1, 4)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]  # what is right is read still
    with pytest.raises(DataError, match="corrupt"):  # and what is wrong was not cached
        storage.read_ranges([part(1000, 2000)])


@pytest.mark.parametrize("fault", [hostile.SHORT, hostile.TRUNCATE])
def test_a_short_read_never_passes(server: HostileServer, storage: Storage, fault: str) -> None:
    server.fail("/bucket/a.tar", fault)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    server.always("/bucket/a.tar", fault)
    with pytest.raises(DataError, match="bytes 0 to 1,000"):
        storage.read_ranges([part(0, 1000)])
    short = Range("a.tar", 0, 1000, sha256(SHARD[:500]))  # a digest of what comes makes it no better
    with pytest.raises(DataError, match="bytes 0 to 1,000"):
        storage.read_ranges([short])


def test_a_file_that_ends_before_the_range_is_an_error(server: HostileServer, storage: Storage) -> None:
    ranges = [part(15_000, 16_000), part(17_000, 18_000)]
    server.files["/bucket/a.tar"] = SHARD[:15_500]
    for asked, came in zip(ranges, (500, 0), strict=True):
        with pytest.raises(DataError, match=rf"{came} bytes came where 1,000 were asked for.*corrupt"):
            storage.read_ranges([asked])


def test_not_found_is_not_retried(server: HostileServer, storage: Storage, pauses: list[float]) -> None:
    for ask in (lambda: storage.read("b.tar"), lambda: storage.read_ranges([part(0, 9, "b.tar")])):
        with pytest.raises(DataError, match=r"b\.tar in .* is missing \(not found\)"):
            ask()
    assert server.requests["/bucket/b.tar"] == 2
    assert pauses == []


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_forbidden_is_not_retried(server: HostileServer, storage: Storage, status: int) -> None:
    server.always("/bucket/a.tar", status)
    with pytest.raises(DataError, match=rf"a\.tar in .* may not be read .*{status}.*credentials"):
        storage.read_ranges([part(0, 9)])
    assert server.requests["/bucket/a.tar"] == 1


def test_a_server_in_trouble_does_not_say_that_a_file_is_missing(server: HostileServer, storage: Storage) -> None:
    assert storage.exists("a.tar")
    assert not storage.exists("b.tar")
    server.fail("/bucket/a.tar", 500, hostile.STALL, hostile.RESET)
    assert storage.exists("a.tar")
    server.always("/bucket/a.tar", 500)
    with pytest.raises(DataError, match="cannot be read: 5 tries"):
        storage.exists("a.tar")


def test_what_the_cache_has_is_not_asked_for(server: HostileServer, tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10**6)
    first, _ = Storage.open(server.url("/bucket/manifest.json"), cache)
    first.read_ranges([part(0, 1000)])
    first.read("a.tar", sha256(SHARD))
    asked = server.requests.copy()
    again, _ = Storage.open(server.url("/bucket/manifest.json"), Cache(tmp_path, 10**6))
    assert again.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    assert again.read("a.tar", sha256(SHARD)) == SHARD
    assert server.requests == asked
    assert again.counts == Counts(cache_hits=2)


def test_a_cached_copy_that_rotted_is_fetched_again(server: HostileServer, tmp_path: Path) -> None:
    storage, _ = Storage.open(server.url("/bucket/manifest.json"), Cache(tmp_path, 10**6))
    storage.read_ranges([part(0, 1000)])
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    kept.write_bytes(flipped(kept.read_bytes()))
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    assert storage.counts.quarantined == 1
    assert server.requests["/bucket/a.tar"] == 2


def test_a_cache_that_cannot_be_written_stops_nothing(server: HostileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", 10**6)
    storage, _ = Storage.open(server.url("/bucket/manifest.json"), cache)
    assert storage.read_ranges([part(0, 1000)]) == [SHARD[:1000]]
    assert cache.failed_writes == 1


def test_same_basename_in_two_buckets_does_not_collide(tmp_path: Path) -> None:
    """A cache by file name would serve the shard of one bucket for that of the other."""
    one, two = SHARD[:1000], SHARD[1000:2000]
    with HostileServer({"/one/shard.tar": one, "/two/shard.tar": two}) as server:
        for data, bucket in ((one, "one"), (two, "two"), (one, "one")):
            storage, name = Storage.open(server.url(f"/{bucket}/shard.tar"), Cache(tmp_path, 10**6))
            assert storage.read(name, sha256(data)) == data
            assert storage.read_ranges([Range(name, 10, 20, sha256(data[10:20]))]) == [data[10:20]]
        assert server.requests == {"/one/shard.tar": 2, "/two/shard.tar": 2}


def test_a_server_that_ignores_ranges_is_asked_once_for_each_file(server: HostileServer, storage: Storage) -> None:
    other = server.files["/bucket/b.tar"] = SHARD[::-1]
    for name in ("a", "b"):
        server.always(f"/bucket/{name}.tar", hostile.WHOLE)
    starts = range(0, 20_000, 2000)
    ranges = [part(start, start + 1000) for start in starts]
    ranges += [part(start, start + 1000, "b.tar", other) for start in starts]
    wanted = [SHARD[start : start + 1000] for start in starts] + [other[start : start + 1000] for start in starts]
    assert storage.read_ranges(ranges) == wanted
    assert server.requests == {"/bucket/a.tar": 2, "/bucket/b.tar": 1}  # one to find out
    assert storage.counts.bytes_fetched == 60_000  # what it cost can be seen


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch {mark}",
        "pipe://touch {mark}",
        "PIPE:touch {mark}",
        "local;touch {mark}",
        "local;touch {mark}://x/y",
        "|touch {mark}",
        "simplecache::pipe://touch {mark}",
        "simplecache::http://127.0.0.1/x",
        "filecache::/tmp/x",
        "ssh://host/x",
        "github://a:b@main/x",
        "http:/one/slash",
        "s3:bucket/x",
    ],
)
def test_no_shell_is_ever_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = url.format(mark="mark")
    storage, _ = Storage.open("memory://folder/manifest.json")
    with pytest.raises(ConfigError, match=r"is read.*file, memory, http|file, memory, http.*is read"):
        Storage.open(url)
    if "://" in url:
        with pytest.raises(ConfigError, match="is not read"):
            storage.read(url)
    if url.lower().startswith("pipe"):
        with pytest.raises(ConfigError, match="no shell is ever run"):
            Storage.open(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://bucket", "http://host", "http://host/folder/", "", "folder/", "memory://"])
def test_a_url_without_a_file_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_check_installed", lambda protocol: None)
    with pytest.raises(ConfigError, match="names no file"):
        Storage.open(url)


MISSING = """
import sys
sys.modules.update(dict.fromkeys(["aiohttp", "gcsfs", "s3fs", "huggingface_hub"]))  # as if they were not installed
from conf.exits import ConfigError
from data_pipeline.storage import Storage
for protocol in sys.argv[1:]:
    for ask in (
        lambda: Storage.open(f"{protocol}://bucket/folder/manifest.json"),
        lambda: Storage.open("/folder/manifest.json")[0].read(f"{protocol}://bucket/a.tar"),
    ):
        try:
            ask()
        except ConfigError as error:
            print(error)
"""


def test_a_missing_package_names_the_extra(root: Path) -> None:
    extras = {"http": "http", "https": "http", "gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "hf": "hf"}
    done = subprocess.run(
        [sys.executable, "-c", MISSING, *extras], cwd=root, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(extras)
    for number, (protocol, extra) in enumerate(extras.items()):
        for line in lines[2 * number : 2 * number + 2]:
            assert line.startswith(f"{protocol}:// needs a package that is not installed")
            assert line.endswith(f"pip install 'gemcutter[{extra}]'")


SECRET = "hunter2-hunter2"


@pytest.mark.parametrize("fault", [404, 403, 500, hostile.STALL, hostile.TRUNCATE, hostile.FLIP, hostile.RESET])
def test_secrets_are_not_in_messages(server: HostileServer, fault: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TRIES", 2)
    url = f"http://me:{SECRET}@{server.address}/bucket/manifest.json?sig={SECRET}%2Fx&sp=r"
    storage, name = Storage.open(url)
    assert name == "manifest.json"
    assert storage.read("a.tar") == SHARD
    assert server.targets[-1].startswith(f"/bucket/a.tar?sig={SECRET}")  # and yet they are sent
    assert server.authorizations[-1] is not None
    server.always("/bucket/a.tar", fault)
    asks = [
        lambda: storage.read("a.tar", sha256(SHARD)),
        lambda: storage.read_ranges([part(0, 1000)]),
        lambda: storage.read_ranges([part(0, 1000, url.replace("manifest.json", "a.tar"))]),
    ]
    for ask in asks:
        with pytest.raises(DataError) as caught:
            ask()
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        assert "a.tar" in str(caught.value)
        assert caught.value.__cause__ is not None
    assert SECRET not in repr(storage) + storage.url
    assert storage.url == f"http://***@{server.address}/bucket"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@host:80/a/b.tar", "http://***@host:80/a/b.tar"),
        ("https://secret@host/a", "https://***@host/a"),
        ("http://host/a?token=secret&x=/y?secret", "http://host/a?***"),
        ("http://user:se/secret@host/a", "http://***"),
        ("http://user:p@secret@host/a", "http://***@host/a"),
        ("http://[::1]:8000/a", "http://[::1]:8000/a"),
        ("s3://key:secret@bucket/a", "s3://***@bucket/a"),
        ("hf://datasets/me/name@main/a.tar", "hf://datasets/me/name@main/a.tar"),
        ("/folder/a?b@c", "/folder/a?b@c"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_memory_works(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.pipe({"/storage-test/folder/a.tar": SHARD, "/storage-test/folder/manifest.json": b"{}"})
    storage, name = Storage.open("memory://storage-test/folder/manifest.json", Cache(tmp_path, 10**6))
    assert (name, storage.url, storage.local) == ("manifest.json", "memory://storage-test/folder", False)
    assert storage.read(name) == b"{}"
    assert storage.read_ranges([part(5, 500), part(0, 0), part(5, 500)]) == [SHARD[5:500], b"", SHARD[5:500]]
    assert storage.exists("a.tar")
    assert not storage.exists("b.tar")
    assert storage.sizes() == {"a.tar": 20_000, "manifest.json": 2}
    assert storage.read_ranges([part(5, 500)]) == [SHARD[5:500]]
    assert storage.counts.cache_hits == 1
    with pytest.raises(DataError, match="0 bytes came where 10 were asked for"):
        storage.read_ranges([Range("a.tar", 30_000, 30_010, sha256(b""))])
    with pytest.raises(DataError, match="not found"):
        storage.read("b.tar")
    files.rm("/storage-test", recursive=True)


@pytest.mark.parametrize("form", ["{folder}/manifest.json", "file://{folder}/manifest.json", "manifest.json"])
def test_local_works(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(SHARD)
    (tmp_path / "manifest.json").write_bytes(b"{}")
    monkeypatch.chdir(tmp_path)
    cache = Cache(tmp_path / "cache", 10**6)
    storage, name = Storage.open(form.format(folder=tmp_path), cache)
    monkeypatch.chdir("/")
    assert storage.local
    assert storage.read(name, sha256(b"{}")) == b"{}"
    assert storage.read_ranges([part(7, 777), part(0, 0)]) == [SHARD[7:777], b""]
    assert storage.exists("a.tar")
    assert not storage.exists("b.tar")
    assert not storage.exists("a.tar/below")
    assert storage.sizes() == {"a.tar": 20_000, "manifest.json": 2}
    assert not cache.folder.exists()


def test_a_rotten_local_file_is_read_once_more(tmp_path: Path, pauses: list[float]) -> None:
    (tmp_path / "a.tar").write_bytes(flipped(SHARD[:1500]))
    storage, _ = Storage.open(str(tmp_path / "manifest.json"), Cache(tmp_path / "cache", 10**6))
    for asked in (part(700, 800), part(1000, 2000)):
        with pytest.raises(DataError, match=r"a\.tar in .*Read 2 times; the copy at the source is corrupt"):
            storage.read_ranges([asked])
    assert len(pauses) == 2
    assert storage.counts == Counts(refetched=2, bytes_fetched=200 + 1000)
    with pytest.raises(DataError, match="not found"):
        storage.read("b.tar")
    with pytest.raises(DataError, match="may not be read"):
        storage.read(".")


def test_names_that_stand_on_their_own_are_read_from_there(server: HostileServer, tmp_path: Path) -> None:
    local, two = tmp_path / "local.tar", SHARD[::-1]
    local.write_bytes(two)
    here, _ = Storage.open(str(tmp_path / "manifest.json"))
    there, _ = Storage.open(server.url("/bucket/manifest.json"))
    ranges = [
        part(0, 10, server.url("/bucket/a.tar")),
        part(3, 30, str(local), two),
        part(5, 9, f"file://{local}", two),
    ]
    for storage in (here, there):
        assert storage.read_ranges(ranges) == [SHARD[:10], two[3:30], two[5:9]]
        assert storage.exists(ranges[0].name)
        assert storage.exists(ranges[1].name)


def test_names_with_marks_of_urls_are_names(server: HostileServer) -> None:
    name = "a b#1?x=%41&é.tar"
    server.files[f"/bucket/{name}"] = SHARD
    storage, _ = Storage.open(server.url("/bucket/manifest.json"))
    assert storage.read_ranges([part(0, 10, name)]) == [SHARD[:10]]


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(storage: Storage, tmp_path: Path) -> None:
    assert storage.sizes() is None
    assert Storage.open(str(tmp_path / "manifest.json"))[0].sizes() == {}
    with pytest.raises(DataError, match="is missing"):
        Storage.open(str(tmp_path / "none" / "manifest.json"))[0].sizes()


WORKER = """
import pickle, sys
storage = pickle.load(sys.stdin.buffer)
assert storage.counts.bytes_fetched == 0
sys.stdout.buffer.write(storage.read("a.tar"))
"""


def test_it_travels_to_another_process(server: HostileServer, tmp_path: Path, root: Path) -> None:
    storage, _ = Storage.open(server.url("/bucket/manifest.json"), Cache(tmp_path, 10**6))
    storage.read_ranges([part(0, 10)])
    done = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=root, input=pickle.dumps(storage), capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (SHARD, b"")


def test_it_works_after_a_fork(server: HostileServer, storage: Storage) -> None:
    storage.read("a.tar")
    child = os.fork()
    if child == 0:
        os._exit(0 if storage.read_ranges([part(0, 10)]) == [SHARD[:10]] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_may_share_it(server: HostileServer, storage: Storage) -> None:
    ranges = [part(start, start + 10) for start in range(0, 2000, 10)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda asked: storage.read_ranges([asked])[0], ranges))
    assert found == [SHARD[r.start : r.end] for r in ranges]
    assert storage.counts.bytes_fetched == 2000


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bounds=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)).map(sorted), min_size=1, max_size=6),
    faults=st.lists(
        st.sampled_from([500, 503, 429, hostile.TRUNCATE, hostile.SHORT, hostile.FLIP, hostile.RESET, hostile.WHOLE]),
        max_size=4,
    ),
    cached=st.booleans(),
)
def test_whatever_comes_between_the_bytes_are_right(
    server: HostileServer, tmp_path: Path, bounds: list[list[int]], faults: list[str | int], cached: bool
) -> None:
    server.fail("/bucket/a.tar", *faults)
    cache = Cache(tmp_path / os.urandom(4).hex(), 10**6) if cached else None
    storage, _ = Storage.open(server.url("/bucket/manifest.json"), cache)
    ranges = [part(start, end) for start, end in bounds]
    for _ in range(2):
        assert storage.read_ranges(ranges) == [SHARD[r.start : r.end] for r in ranges]
    server._faults.clear()

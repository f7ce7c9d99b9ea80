"""Promises of the cache: its limit is kept, what it gives is what was asked for, and it never stops a run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.cache import Cache


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(cache: Cache, data: bytes) -> str:
    cache.put(digest(data), data)
    return digest(data)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "quarantine" not in path.parts]


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_of(folder))


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_was_put_is_found_under_its_digest(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    name = put(cache, b"text")
    assert cache.get(name) == b"text"
    assert (tmp_path / name[:2] / name).read_bytes() == b"text"
    assert cache.get(digest(b"other")) is None
    assert Cache(tmp_path, 1000).get(name) == b"text"  # of any process


def test_a_name_that_is_no_digest_reaches_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a sha256"):
        Cache(tmp_path, 1000).get("../../etc/passwd")


@settings(max_examples=40, deadline=None)
@given(limit=st.integers(1, 400), sizes=st.lists(st.integers(0, 120), max_size=40))
def test_limit_is_kept_after_every_write(limit: int, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = Cache(folder, limit)
        for number, size in enumerate(sizes):
            data = bytes([number]) * size
            put(cache, data)
            assert held(folder) <= limit
            assert cache.get(digest(data)) == (data if size <= limit else None)  # the newest is never the one to go
        assert cache.failed_writes == cache.quarantined == 0


def test_limit_is_kept_where_others_wrote_before(tmp_path: Path) -> None:
    for number in range(20):
        put(Cache(tmp_path, 2000), bytes([number]) * 100)
    put(Cache(tmp_path, 1000), b"x" * 100)
    assert held(tmp_path) <= 900


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    names = [put(cache, bytes([number]) * 100) for number in range(10)]
    for age, name in enumerate(names):
        os.utime(tmp_path / name[:2] / name, (1000 + age, 1000 + age))
    assert cache.get(names[0]) is not None  # used: no longer the oldest
    put(cache, b"x" * 100)
    left = {path.name for path in files_of(tmp_path)}
    assert left == {names[0], *names[3:], digest(b"x" * 100)}  # 90 % of the limit


def test_an_object_larger_than_the_limit_is_not_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    small, large = put(cache, b"small"), put(cache, b"x" * 1001)
    assert cache.get(small) == b"small"  # and nothing made room for it
    assert cache.get(large) is None
    assert cache.failed_writes == 0


@settings(max_examples=25, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), where=st.integers(0, 10**6))
def test_a_flipped_bit_on_disk_is_quarantined_and_not_served(data: bytes, where: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = Cache(folder, 1000)
        sha256 = put(cache, data)
        path = folder / sha256[:2] / sha256
        rotten = bytearray(data)
        rotten[where // 8 % len(data)] ^= 1 << where % 8
        path.write_bytes(rotten)
        assert cache.get(sha256) is None
        assert cache.quarantined == 1
        assert [file.read_bytes() for file in (folder / "quarantine").iterdir()] == [bytes(rotten)]
        assert cache.get(sha256) is None  # gone
        cache.put(sha256, data)
        assert cache.get(sha256) == data
        assert cache.quarantined == 1


def test_a_truncated_file_is_not_served(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    name = put(cache, b"some text")
    (tmp_path / name[:2] / name).write_bytes(b"some")
    assert cache.get(name) is None
    assert cache.quarantined == 1


def test_quarantine_keeps_the_newest_few(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    for number in range(30):
        path = cache.quarantine(digest(b"right"), b"%d" % number)
        assert path is not None
        os.utime(path, (1000 + number, 1000 + number))
    assert {path.read_bytes() for path in (tmp_path / "quarantine").iterdir()} == {b"%d" % n for n in range(14, 30)}
    assert cache.quarantined == 30


def test_a_folder_that_is_a_file_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file", 1000)
    name = put(cache, b"text")
    assert cache.get(name) is None
    assert cache.quarantine(name, b"wrong") is None
    assert (cache.failed_writes, cache.failed_reads) == (2, 1)


FULL = """
import hashlib, resource, signal, sys
from pathlib import Path
from data_pipeline.cache import Cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
cache = Cache(Path(sys.argv[1]), 10**6)
small, large = b"a" * 1000, b"b" * 1001
for data in (large, small):
    cache.put(hashlib.sha256(data).hexdigest(), data)
assert cache.get(hashlib.sha256(small).hexdigest()) == small
assert cache.get(hashlib.sha256(large).hexdigest()) is None
print(cache.failed_writes, cache.quarantined)
"""


def test_a_full_disk_stops_nothing_and_leaves_no_pieces(tmp_path: Path) -> None:
    process = run(FULL, tmp_path)
    assert process.communicate() == ("1 0\n", "")
    assert [path.stat().st_size for path in files_of(tmp_path)] == [1000]


SHARE = """
import hashlib, random, sys
from pathlib import Path
from data_pipeline.cache import Cache
folder, seed, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cache, choose, hits = Cache(folder, limit), random.Random(seed), 0
for _ in range(700):
    data = b"%d" % choose.randrange(60) * 300
    name = hashlib.sha256(data).hexdigest()
    found = cache.get(name)
    assert found in (None, data)
    hits += found is not None
    if found is None:
        cache.put(name, data)
assert hits
print(cache.failed_writes, cache.failed_reads, cache.quarantined)
"""


def test_processes_share_a_folder_without_harm(tmp_path: Path) -> None:
    limit = 20_000  # half of what they use
    processes = [run(SHARE, tmp_path, seed, limit) for seed in range(3)]
    assert [process.communicate() for process in processes] == [("0 0 0\n", "")] * 3
    assert held(tmp_path) <= 1.3 * limit  # a tenth for each process
    assert not list(tmp_path.rglob("*.tmp"))


WRITE = """
import sys, time
from pathlib import Path
from data_pipeline.cache import Cache
Path.replace = lambda *_: (print("written", flush=True), time.sleep(60))
Cache(Path(sys.argv[1]), 10**6).put(sys.argv[2], b"half of the tex")
"""


def test_a_killed_writer_leaves_nothing_that_is_served(tmp_path: Path) -> None:
    name = digest(b"half of the text")
    process = run(WRITE, tmp_path, name)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate()
    (left,) = files_of(tmp_path)
    assert left.read_bytes() == b"half of the tex"
    cache = Cache(tmp_path, 1000)
    assert cache.get(name) is None
    put(cache, b"first")
    assert left.exists()  # its writer may be slow
    os.utime(left, (time.time() - 7200,) * 2)
    put(Cache(tmp_path, 1000), b"second")
    assert not left.exists()
    assert cache.quarantined == cache.failed_writes == 0

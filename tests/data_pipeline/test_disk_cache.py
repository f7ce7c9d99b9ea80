"""Promises of the cache: within its limit, never wrong, shared by processes, and never the end of a run."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.disk_cache import DiskCache

ROOT = Path(__file__).parents[2]


def put(cache: DiskCache, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    cache.put(digest, data)
    return digest


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=60))
def test_the_limit_is_kept_and_what_is_served_is_right(tmp_path_factory: object, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("cache")  # type: ignore[attr-defined]
    cache, known = DiskCache(folder, 1000), {}
    for number, size in enumerate(sizes):
        data = bytes([number]) * size
        known[put(cache, data)] = data
        assert held(folder) <= 1100  # a tenth may come between two looks at the folder
    for digest, data in known.items():
        assert cache.get(digest) in (None, data)


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1000)
    digests = [put(cache, bytes([n]) * 200) for n in range(5)]
    for age, digest in enumerate(digests):
        path = tmp_path / digest[:2] / digest
        os.utime(path, (age, age))
    assert cache.get(digests[0]) is not None  # used: now the youngest
    put(cache, b"x" * 200)
    assert [cache.get(digest) is not None for digest in digests] == [True, False, False, True, True]


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    assert cache.get(put(cache, b"x" * 101)) is None
    assert cache.failed_writes == 0


def test_a_flipped_byte_is_set_aside_and_not_served(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000)
    digest = put(cache, b"x" * 500)
    path = tmp_path / digest[:2] / digest
    path.write_bytes(b"y" + path.read_bytes()[1:])
    assert cache.get(digest) is None
    assert cache.quarantined == 1
    assert not path.exists()
    assert [each.read_bytes()[:1] for each in (tmp_path / "quarantine").iterdir()] == [b"y"]


def test_evidence_cannot_fill_the_disk(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_000)
    for number in range(40):
        cache.quarantine(bytes([number]), "ab" * 32)
    kept = sorted(path.read_bytes() for path in (tmp_path / "quarantine").iterdir())
    assert kept == [bytes([number]) for number in range(24, 40)]


def test_a_disk_that_takes_nothing_stops_no_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file", 1000)
    assert cache.get(put(cache, b"x")) is None
    assert cache.failed_writes == 1


def test_what_a_killed_writer_left_is_never_served_and_goes_in_time(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"whole").hexdigest()
    left = tmp_path / digest[:2] / f"{digest}.0.partial"
    left.parent.mkdir()
    left.write_bytes(b"who")
    cache = DiskCache(tmp_path, 1000)
    assert cache.get(digest) is None
    put(cache, b"a")
    assert left.exists()  # its writer may still be at work
    os.utime(left, (time.time() - 4000,) * 2)
    put(DiskCache(tmp_path, 1000), b"b")
    assert not left.exists()


WRITER = """
import hashlib, random, sys
from pathlib import Path
from data_pipeline.disk_cache import DiskCache
draw = random.Random(int(sys.argv[2]))
cache = DiskCache(Path(sys.argv[1]), 20_000)
for _ in range(400):
    data = bytes([draw.randrange(60)]) * 1000
    digest = hashlib.sha256(data).hexdigest()
    found = cache.get(digest)
    assert found in (None, data)
    if found is None:
        cache.put(digest, data)
assert cache.quarantined == cache.failed_writes == 0
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache")]
    writers = [subprocess.Popen([*command, str(seed)], cwd=ROOT) for seed in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert held(tmp_path / "cache") <= 20_000 * 1.3  # three processes, a tenth each
    assert not list((tmp_path / "cache").glob("??/*.partial"))

"""Promises of engines: what is committed stays, the same bytes for any workers, and a death costs the tasks it hit."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conf.exits import ConfigError, DataError
from data_pipeline.engine import records
from data_pipeline.engine.local import Local
from data_pipeline.engine.stage import Engine, Stage, run
from tests.data_pipeline.engine_tasks import write

TASKS = 12


def stage(folder: Path, **of_task_5: Any) -> Stage[dict[str, Any]]:
    log = folder / "log"
    log.touch()
    tasks = [{"number": n, "log": str(log)} | (of_task_5 if n == 5 else {}) for n in range(TASKS)]
    return Stage("write-1a2b", write, tasks)


def begun(folder: Path) -> list[int]:
    return [int(line.split()[0]) for line in (folder / "log").read_text().splitlines()]


def do(folder: Path, engine: Engine, **of_task_5: Any) -> list[dict[str, Any]]:
    return run(stage(folder, **of_task_5), folder / "work", engine, lambda done, of: None)


def digest(folder: Path) -> str:
    files = sorted(path for path in (folder / "work").rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


@pytest.fixture(autouse=True, scope="module")
def importable() -> Iterator[None]:
    """Workers load what they do by its name, here and on the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield


def test_workers_change_nothing(tmp_path: Path) -> None:
    digests, facts = set(), []
    for workers in (1, 2, 7):
        folder = tmp_path / str(workers)
        folder.mkdir()
        facts.append(do(folder, Local(workers)))
        digests.add(digest(folder))
    assert len(digests) == 1
    assert facts == [[{"number": n, "bytes": 32_000} for n in range(TASKS)]] * 3


def test_what_is_committed_is_never_done_again(tmp_path: Path) -> None:
    do(tmp_path, Local(2))
    seen: list[tuple[int, int]] = []
    run(stage(tmp_path), tmp_path / "work", Local(2), lambda done, of: seen.append((done, of)))
    assert sorted(begun(tmp_path)) == list(range(TASKS))
    assert seen == [(TASKS, TASKS)]


def test_a_killed_worker_costs_the_tasks_under_way(tmp_path: Path) -> None:
    assert len(do(tmp_path, Local(2), kills="once")) == TASKS
    again = sorted(begun(tmp_path))
    assert again.count(5) == 2
    assert len(again) <= TASKS + 2  # its own, and the one beside it
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    do(undisturbed, Local(1))
    assert digest(undisturbed) == digest(tmp_path)


def test_a_task_that_kills_its_workers_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task 5 .*killed 3 workers.*want of memory"):
        do(tmp_path, Local(2), kills="always")
    committed = [path.name for path in (tmp_path / "work" / "write-1a2b").iterdir()]
    assert "000004" in committed
    before = len(begun(tmp_path))
    do(tmp_path, Local(2))
    assert len(begun(tmp_path)) == before + TASKS - len([name for name in committed if len(name) == 6])


def test_an_error_reaches_the_driver_as_itself(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^task 5 reads what is no file of its kind$"):
        do(tmp_path, Local(2), fails=True)
    assert (tmp_path / "work" / "write-1a2b" / "000000").is_dir()


DRIVER = """
import sys
from pathlib import Path
from tests.data_pipeline.test_engine import do
from data_pipeline.engine.local import Local

if __name__ == "__main__":
    do(Path(sys.argv[1]), Local(2), seconds=60)
"""


def test_a_killed_driver_takes_its_workers_along_and_loses_no_commit(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "log").exists() or len(begun(tmp_path)) < TASKS:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    workers = {int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()}
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    do(tmp_path, Local(1))
    again = begun(tmp_path)[TASKS:]
    assert 5 in again
    assert len(again) <= 2


@pytest.fixture(scope="module")
def cluster(importable: None) -> Iterator[Any]:
    """A Ray cluster of this machine with a node that can be taken away."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # tests tell nobody
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    cluster.shutdown()


def test_ray_gives_the_same_bytes_though_a_node_dies(tmp_path: Path, cluster: Any) -> None:
    from data_pipeline.engine.ray import Ray

    node = cluster.add_node(num_cpus=1)
    under = tmp_path / "ray"
    under.mkdir()
    gone = []

    def progress(done: int, of: int) -> None:
        if done >= 3 and not gone:
            gone.append(done)
            cluster.remove_node(node, allow_graceful=False)

    facts = run(stage(under, kills="once"), under / "work", Ray(cluster.address), progress)
    assert gone
    here = tmp_path / "here"
    here.mkdir()
    assert facts == do(here, Local(1))
    assert digest(under) == digest(here)


def test_ray_passes_errors_on_and_names_a_deadly_task(tmp_path: Path, cluster: Any) -> None:
    from data_pipeline.engine.ray import Ray

    with pytest.raises(DataError, match=r"^task 5 reads what is no file of its kind$"):
        do(tmp_path, Ray(cluster.address), fails=True)
    with pytest.raises(DataError, match=r"task 5 .*ended 3 Ray workers"):
        do(tmp_path, Ray(cluster.address), kills="always")
    assert len(do(tmp_path, Ray(cluster.address))) == TASKS


def test_a_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    from data_pipeline.engine.ray import Ray

    with pytest.raises(ConfigError, match=r"^127\.0\.0\.1:1: no Ray cluster answers"):
        do(tmp_path, Ray("127.0.0.1:1"))


def test_ray_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipeline.engine.ray import Ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs the package ray, .*'gemcutter\[ray\]'"):
        do(tmp_path, Ray("auto"))


def test_only_deaths_are_called_deaths(tmp_path: Path) -> None:
    from ray import exceptions

    from data_pipeline.engine.ray import _result

    def result(error: Exception) -> None:
        def get(reference: object) -> int:
            raise error

        _result(SimpleNamespace(get=get, exceptions=exceptions), None, (5, "slice"))

    for error in (exceptions.WorkerCrashedError(), exceptions.OutOfMemoryError("4 GB")):
        with pytest.raises(DataError, match="want of memory"):
            result(error)
    for error in (exceptions.RuntimeEnvSetupError("no space"), exceptions.RaySystemError("lost")):
        with pytest.raises(DataError, match=r"(?s)task 5 \(slice\) was not done, as Ray failed .*(no space|lost)"):
            result(error)


def test_a_connection_to_ray_that_was_there_stays(tmp_path: Path, cluster: Any) -> None:
    import ray

    from data_pipeline.engine.ray import Ray

    ray.init(cluster.address, log_to_driver=False)
    try:
        do(tmp_path, Ray(cluster.address))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


PAIR = np.dtype([("key", np.uint64), ("value", np.uint32)])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(hnp.arrays(PAIR, st.integers(0, 30), elements=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 9)))),
    st.integers(1, 200),
)
def test_ranges_hold_every_record_once_and_in_order(tmp_path_factory, files, most) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("records")
    paths = [folder / f"{number}.npy" for number in range(len(files))]
    for path, one in zip(paths, files, strict=True):
        records.write(path, one)
    total = sum(one.nbytes for one in files)
    found = np.concatenate([records.read(paths, *bounds, PAIR) for bounds in records.ranges(total, most)])
    together = np.concatenate([np.empty(0, PAIR), *files])
    assert np.array_equal(found, together[np.argsort(together["key"], kind="stable")])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        hnp.arrays(PAIR, st.integers(0, 30), elements=st.tuples(st.integers(0, 20), st.integers(0, 9))), min_size=1
    ),
    st.sampled_from([64, 2**20]),
)
def test_merged_files_are_read_as_the_many_were(tmp_path_factory, files, at_once) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("records")
    paths = [folder / str(number) / "a.npy" for number in range(len(files))]
    for path, one in zip(paths, files, strict=True):
        path.parent.mkdir()
        records.write(path, one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_MERGED_BYTES", at_once)
        assert records.merge(records.Merge(paths), folder) == {"records": sum(map(len, files))}
    assert np.array_equal(np.load(folder / "a.npy"), records.read(paths, 0, 2**64, PAIR))
    assert np.array_equal(records.read([folder / "a.npy"], 3, 9, PAIR), records.read(paths, 3, 9, PAIR))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 500), max_size=300), max_size=4), st.sampled_from([512, 2048, 2**20]))
def test_balanced_ranges_are_of_about_one_size_however_keys_fall(tmp_path_factory, files, most) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("records")
    paths = [folder / f"{number}.npy" for number in range(len(files))]
    for path, keys in zip(paths, files, strict=True):
        one = np.zeros(len(keys), PAIR)
        one["key"] = keys
        records.write(path, one)
    ranges = records.balanced(paths, most)
    assert (ranges[0][0], ranges[-1][1]) == (0, 2**64)
    assert [stop for _, stop in ranges[:-1]] == [first for first, _ in ranges[1:]]
    parts = [records.read(paths, *bounds, PAIR)["key"] for bounds in ranges]
    every = sorted(key for keys in files for key in keys)
    assert np.concatenate(parts).tolist() == every
    commonest = max((every.count(key) for key in set(every)), default=0)
    assert all(part.size <= 2 * most // PAIR.itemsize + 32 + commonest for part in parts)


def test_records_are_found_by_key(tmp_path: Path) -> None:
    one = np.array([(3, 1), (5, 2), (9, 3)], PAIR)
    path, empty = tmp_path / "one.npy", tmp_path / "empty.npy"
    records.write(path, one)
    records.write(empty, one[:0])
    wanted = np.array([1, 3, 9, 12], np.uint64)
    stored, nothing = (np.load(one, mmap_mode="r") for one in (path, empty))
    first, found = records.find(stored, wanted)
    assert (first, found["value"].tolist()) == (1, [1, 3])
    assert records.find(stored, wanted[3:])[1].size == records.find(nothing, wanted)[1].size == 0
    with pytest.raises(KeyError, match=r"one\.npy lacks records of some keys from 3 to 9"):
        records.find(stored, np.array([3, 4, 9], np.uint64))
    assert records.among([path, empty], wanted).tolist() == [False, True, True, False]

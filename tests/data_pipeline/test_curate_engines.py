"""Curation gives the same bytes whoever does the tasks, in whatever order, and whoever is killed meanwhile."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conf.schema import Job
from data_pipeline.curate import curate, reading
from data_pipeline.curate import job as curation
from data_pipeline.curate.road import FIRST_NEW
from data_pipeline.duplicates import steps
from data_pipeline.engine import records
from tests.data_pipeline import curate_tasks
from tests.data_pipeline.invented_collection import collect, digests, job_of, rows


class Undisturbed(NamedTuple):
    """What one process makes of the collection in a folder."""

    folder: Path
    digests: dict[str, str]

    def job(self, output: Path) -> Job:
        """To make the same again elsewhere."""
        job = job_of(self.folder, output)
        job.curate.work = str(output.with_name("work"))
        return job


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    collect(folder)
    curate(job_of(folder, folder / "out"))
    return Undisturbed(folder, digests(folder / "out"))


@pytest.fixture(autouse=True, scope="module")
def importable() -> Iterator[None]:
    """Workers load what they do by its name, here and on the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield


def test_the_collection_holds_what_the_other_tests_are_about(undisturbed: Undisturbed) -> None:
    output = undisturbed.folder / "out"
    manifest = json.loads((output / "manifest.json").read_text())
    dropped, kept = manifest["counts"]["dropped"], rows(output)
    for reason in (
        "near_duplicate", "exact_duplicate", "contaminated", "prohibited", "blocked_domain", "broken_record", "empty",
    ):  # fmt: skip
        assert dropped[reason], reason
    assert len(manifest["files"]) > 3
    assert len(manifest["counts"]["sources"]) == 4
    assert sum(bool(row["cut_characters"]) for row in kept) == 39  # all but the first of forty with the same line
    ids = [row["id"] for row in kept]
    assert {"same", "same~2", "same~2~1", "same~4"} < set(ids)
    assert len(set(ids)) == len(ids)
    assert any("<EMAIL-" in row["text"] for row in kept)
    assert 30_000 <= manifest["counts"]["sources"]["limited"]["bytes_in"] < 31_500


def test_where_many_parts_are_merged_no_byte_changes(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of fewer files with the same records the same is found, whatever range of keys a task has."""
    monkeypatch.setattr(records, "MANY", 2)
    monkeypatch.setattr(records, "_MERGED_BYTES", 1 << 10)
    monkeypatch.setattr(steps.equal, "__defaults__", (1 << 10,))
    monkeypatch.setattr(steps.similar, "__defaults__", (1 << 13,))
    curate(undisturbed.job(tmp_path / "out"))
    assert digests(tmp_path / "out") == undisturbed.digests
    stages = {path.name.rpartition("-")[0] for path in (tmp_path / "work").iterdir() if path.is_dir()}
    assert {"merge", "gone", "lines", "names-merged", "equal-removed"} <= stages


class Shuffled:
    """Does tasks in an order of its own."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def run(self, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        yield from map(work, self._random.sample(tasks, len(tasks)))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_in_which_tasks_end_changes_no_byte(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(curation, "_engine", lambda keys: nullcontext(Shuffled(seed)))
    curate(undisturbed.job(tmp_path / "out"))
    assert digests(tmp_path / "out") == undisturbed.digests


def test_seven_workers_change_no_byte(undisturbed: Undisturbed, tmp_path: Path) -> None:
    job = undisturbed.job(tmp_path / "out")
    job.curate.workers = 7
    curate(job)
    assert digests(tmp_path / "out") == undisturbed.digests


def test_of_two_workers_one_may_be_killed_while_it_reads(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr(reading, "read", functools.partial(curate_tasks.read, log, FIRST_NEW + 9))
    job = undisturbed.job(tmp_path / "out")
    job.curate.workers = 2
    curate(job)
    assert digests(tmp_path / "out") == undisturbed.digests
    begun = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert begun.count(FIRST_NEW + 9) == 2
    assert len(begun) <= len(set(begun)) + 2  # the one that was lost, and the one beside it
    assert not list((tmp_path / "work").rglob("*.attempt"))


def test_ray_changes_no_byte_though_its_workers_have_another_working_directory(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # tests tell nobody
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        monkeypatch.chdir(undisturbed.folder)
        job = job_of(Path(), tmp_path / "out")
        # Documents of a relative glob are named by all of it.
        job.curate.sources[2].paths = [str(undisturbed.folder / "made" / "notes" / "*.txt")]
        job.curate.work = "of-ray"
        job.curate.engine, job.curate.ray_address = "ray", cluster.address
        curate(job)
    finally:
        cluster.shutdown()
    assert digests(tmp_path / "out") == undisturbed.digests

"""The benchmark of curation: contestants answer with what they did, one that is not there is an error, and jobs are
measured while they run."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from conf.schema import Source
from data_pipeline.sources import local
from tests.bench import curate, hostile, whole
from tests.bench.loader import Failed, own_environment
from tests.bench.report import Report
from tests.bench.rounds import interleaved
from tests.bench.watch import Process, Watched, watch

TEXTS = ["The old mill stands by the river, and people of the village come to have their grain ground.\n" * 3, "short"]
NAMES = [
    "mill",
    "river",
    "village",
    "baker",
    "garden",
    "winter",
    "letter",
    "school",
    "window",
    "bridge",
    "kitchen",
    "captain",
    "island",
    "market",
    "feather",
    "basket",
    "candle",
    "harbour",
    "valley",
]
DEEDS = ["carried", "painted", "followed", "remembered", "visited", "repaired", "watched", "borrowed", "forgot"]
SPEND = (
    "import time\nbegin = time.process_time()\nheld = bytearray({0})\nwhile time.process_time() - begin < {1}: pass\n"
)


def prose(draw: random.Random, lines: int) -> str:
    """Text that every rule keeps: it hardly repeats itself."""
    forms = [
        "In those days the {} {} by the {}, and nobody {} it again.",
        "She {} a {} that they {} with the old {}.",
        "Whoever {} this {} has never {} our {}.",
        "Without a {} to be {} we {} what the {} was.",
        "Then his {} {} all of us, for it had {} {}.",
        "There is one {} more, said the {}, which you {} and {} alone.",
    ]
    found = []
    for _ in range(lines):
        words = iter(draw.sample(NAMES + DEEDS, 4))
        found.append(re.sub("{}", lambda _, words=words: next(words), draw.choice(forms)))
    return "\n".join(found)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of a corpus of three packages. Benchmarks are one question, and nothing is compiled before."""
    text, benchmark = tmp_path / "corpus" / "text", tmp_path / "benchmarks" / "gsm8k"
    text.mkdir(parents=True)
    (tmp_path / "corpus" / "manifest.json").write_text("{}")
    draw = random.Random(1)
    texts = [prose(draw, 12) for _ in range(8)]
    for package, chosen in (("debian-faq", texts[:4]), ("debian-handbook", texts[4:6]), ("manpages-ja", texts[6:])):
        rows = [
            {"id": f"{package}/{n}", "source": package, "text": one, "lang_hint": ""} for n, one in enumerate(chosen)
        ]
        packed = zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        (text / f"{package}.jsonl.zst").write_bytes(packed)
    benchmark.mkdir(parents=True)
    item = {"question": "How many of the eleven apples did the two sisters eat before noon?", "answer": "Four #### 4"}
    (benchmark / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(item).encode() + b"\n"))
    monkeypatch.setenv("GEMCUTTER_CORPUS", str(tmp_path / "corpus"))
    monkeypatch.setenv("GEMCUTTER_BENCHMARKS", str(tmp_path / "benchmarks"))
    monkeypatch.setattr(whole, "warm_up", lambda folder, *_: (folder / "work").mkdir(parents=True))
    monkeypatch.setattr(hostile, "warm_up", lambda folder, *_: (folder / "work").mkdir(parents=True))
    return texts


def test_contestants_answer_and_one_that_is_missing_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(text) + "\n" for text in TEXTS))
    missing = dataclasses.replace(curate.DATATROVE, python=own_environment("no-such-peer"))
    report = Report("curate", {})
    found = interleaved([(one, ["read", str(file), "0"]) for one in (curate.OURS, missing)], 2, report)
    assert list(found) == ["ours"]
    assert list(report.errors) == ["datatrove"]
    assert "make setup-bench" in report.errors["datatrove"]
    for result in found["ours"]:
        assert (result["characters"], result["dropped"]) == (sum(map(len, TEXTS)), 2)
        assert result["seconds"] > 0


def test_a_command_and_what_it_starts_are_measured(tmp_path: Path) -> None:
    child, size = SPEND.format(100_000_000, 0.6), 200_000_000
    code = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n{SPEND.format(size, 0.6)}print(1)"
    )
    seen = watch([sys.executable, "-c", code], tmp_path / "log")
    assert seen.output == "1\n"
    assert seen.end - seen.begin >= 1.2
    peaks = seen.peaks()
    assert size <= peaks["driver"] < size + 100_000_000
    assert 100_000_000 <= peaks["other"] < size
    # A tenth of a second of either may be missing, and what a process begins with is there.
    assert 0.8 <= seen.cpu_seconds() <= seen.end - seen.begin + 0.1
    middle = next(at for one in seen.processes if one.role == "driver" for at, cpu, _ in one.seen if cpu > 0.3)
    assert seen.cpu_seconds(seen.begin, middle) + seen.cpu_seconds(middle) == pytest.approx(seen.cpu_seconds())
    assert seen.most_bytes("driver", middle, seen.end) >= size
    with pytest.raises(Failed, match="exit code 1: ValueError: no such thing"):
        watch([sys.executable, "-c", "raise ValueError('no such thing')"], tmp_path / "log")


def test_the_whole_is_measured_and_other_limits_need_no_second_reading(corpus: list[str], tmp_path: Path) -> None:
    report = curate.bench(tmp_path / "runs", ["--part", "pipeline", "--workers", "1"])
    assert report.work["pipeline"] == {
        "documents": 8, "characters": sum(map(len, corpus)), "slice_bytes": whole.SLICE_BYTES
    }  # fmt: skip
    first, again = (report.details[f"pipeline, 1 workers{which}"] for which in ("", ", other limits"))
    assert (first["summary"]["documents_kept"], again["summary"]["documents_kept"]) == (8, 8)
    reused = {name: stage["reused"] for name, stage in again["stages"].items() if "reused" in stage}
    assert [name for name, was in reused.items() if was] == ["benchmarks", "read"]
    assert not any(stage.get("reused") for stage in first["stages"].values())
    rows = {row.figure: row.ours for row in report.rows}
    assert rows["pipeline, 1 workers: characters/s"] == pytest.approx(
        sum(map(len, corpus)) / first["seconds"], rel=0.01
    )
    assert rows["pipeline, 1 workers: peak bytes of a driver"] == first["peak_bytes"]["driver"] > 100_000_000
    stages = sum(stage["seconds"] for stage in first["stages"].values())
    assert 0.5 * first["seconds"] < stages <= first["seconds"] + 0.2  # the rest is between its stages
    assert {path.name for path in (tmp_path / "runs" / "curate" / "pipeline").iterdir()} == {
        f"{name}.{kind}" for name in ("text", "other-limits") for kind in ("log", "out")
    }


def test_copies_differ_in_most_lines_and_some_stay_alike() -> None:
    draw = random.Random(2)
    texts = [prose(draw, 12) for _ in range(9)]
    one, other = ([*whole.perturbed(texts, copy)] for copy in (0, 1))
    assert one == [*whole.perturbed(texts, 0)]
    changed = [
        sum(ours != theirs for ours, theirs in zip(a.split("\n"), b.split("\n"), strict=True))
        for a, b in zip(one, other, strict=True)
    ]
    assert all(2 <= count <= 8 for count in changed[::3])
    assert all(count >= 9 for number, count in enumerate(changed) if number % 3)


@pytest.mark.parametrize("power", [1, 1.2])
def test_scaling_compares_jobs_beyond_their_start(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: float
) -> None:
    seen: list[int] = []

    def job(
        folder: Path, name: str, paths: Sequence[Path], workers: int, *more: str, thresholds: dict[str, Any]
    ) -> whole.Curation:
        """Five seconds to start, and a power of the documents."""
        texts = [json.loads(line)["text"] for file in paths[0].parent.iterdir() for line in file.open()]
        seen.append(len(texts))
        seconds = 5 + len(texts) ** power / 10
        roles = {"driver": 100, "worker": 200 + len(texts)}
        processes = [Process(role, size, [(seconds, seconds / 2, size)]) for role, size in roles.items()]
        stage = {"name": "read", "begin": 1, "end": 2, "tasks": 1, "reused": False}
        return whole.Curation(Watched("", 0, seconds, processes), {}, [stage])

    monkeypatch.setattr(whole, "curate", job)
    monkeypatch.setattr(whole, "FEW", 0)
    report = curate.bench(tmp_path / "runs", ["--part", "scaling"])
    assert seen == [0, 8, 32, 128]
    rows = {row.figure.removeprefix("scaling: "): row for row in report.rows}
    for figure in ("time", "CPU time"):
        found = [rows[f"{figure} a character, {times} x over the least"] for times in (1, 4, 16)]
        # Perturbed copies have not quite as many characters each.
        assert [row.ours for row in found] == pytest.approx([times ** (power - 1) for times in (1, 4, 16)], rel=0.02)
        assert [row.met for row in found] == [True, power == 1, power == 1]
    peaks = [rows[f"peak memory of a {role}, {times} x over 1 x"] for role in ("worker", "driver") for times in (4, 16)]
    assert [row.ours for row in peaks] == pytest.approx([232 / 208, 328 / 208, 1, 1])
    assert [row.met for row in peaks] == [True, False, True, True]
    assert not any(path.is_dir() for path in (tmp_path / "runs" / "curate" / "scaling").iterdir())


def test_what_is_too_large_is_measured_and_good_documents_stay(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "a huge line of JSON lines"
    monkeypatch.setattr(hostile, "HUGE", 17_000_000)
    monkeypatch.setattr(hostile, "CASES", {line: hostile.CASES[line]})
    report = curate.bench(tmp_path / "runs", ["--part", "memory"])
    alone, huge = (report.details[f"memory, {name}"]["summary"] for name in ("good documents alone", line))
    assert (alone["documents_in"], huge["documents_in"]) == (4, 5)
    assert huge["dropped"] == {**alone["dropped"], "too_large": 1}
    assert huge["documents_kept"] == alone["documents_kept"] > 0
    assert [row.figure for row in report.rows] == [
        f"peak bytes of a worker: {name}" for name in ("good documents alone", line)
    ]
    assert all(row.ours and row.ours > 100_000_000 for row in report.rows)
    assert not any(path.is_dir() for path in (tmp_path / "runs" / "curate" / "memory").iterdir())


def test_hostile_documents_are_as_large_as_they_say(
    corpus: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "HUGE", 2_500_000)
    monkeypatch.setattr(hostile, "LARGEST", 100_000)
    monkeypatch.setattr(hostile, "TINY", 100)
    for number, make in enumerate(hostile.CASES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder)
    texts = [
        [record.content for record in local.read(Source(paths=[str(tmp_path / str(number) / "*")]))]
        for number in range(len(hostile.CASES))
    ]
    assert [len(of_one) for of_one in texts] == [1, 1, 1, 100, 1, 1, 1]
    assert [len(of_one[0]) for of_one in texts] == [2_500_000, 2_500_000, 2_500_000, 30, 100_000, 100_000, 100_000]

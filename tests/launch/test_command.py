"""The `gemcutter` command: quick answers, clear refusals, nothing touched before a mistake is told."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf import schema

SCRIPT = Path(sys.executable).with_name("gemcutter")


def gemcutter(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def median_seconds(*arguments: str, folder: Path) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert gemcutter(*arguments, folder=folder).returncode == 0
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def test_help_answers_within_half_a_second(tmp_path: Path) -> None:
    assert median_seconds("--help", folder=tmp_path) < 0.5


def test_configuration_is_shown_within_a_second_and_a_half(tmp_path: Path) -> None:
    assert median_seconds("train", "--cfg", "job", folder=tmp_path) < 1.5


def test_torch_is_not_imported_to_show_a_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "launch", "train", "--cfg", "job"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "hydra" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_names_every_job(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = gemcutter(*arguments, folder=tmp_path)
    assert done.returncode == 0
    for name in (*schema.JOBS, "config", "doctor"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("job", schema.JOBS)
def test_help_of_a_job_lists_the_groups(job: str, tmp_path: Path) -> None:
    done = gemcutter(job, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "model: " in done.stdout
    assert "gemma3_1b" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "meant"), [("tran", "train"), ("curat", "curate"), ("docter", "doctor")])
def test_unknown_job_says_which_was_meant(word: str, meant: str, tmp_path: Path) -> None:
    done = gemcutter(word, folder=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert f"no job or command '{word}'" in done.stderr
    assert f"did you mean {meant}?" in done.stderr


def test_unknown_job_that_resembles_none_points_to_help(tmp_path: Path) -> None:
    done = gemcutter("zzz", folder=tmp_path)
    assert done.returncode == 78
    assert "gemcutter --help" in done.stderr


def test_mistakes_stop_the_job_before_anything_is_written(tmp_path: Path) -> None:
    done = gemcutter("train", "optim.peak_ir=1e-3", "model=tinny", "steps=ten", folder=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("gemcutter train: 3 problems with the configuration:\n")
    assert "did you mean optim.peak_lr" in done.stderr
    assert "did you mean tiny?" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_impossible_combination_stops_the_job(tmp_path: Path) -> None:
    done = gemcutter("train", "mesh.fsdp=3", "launch.processes=2", "backend=cpu", folder=tmp_path)
    assert done.returncode == 78
    assert "mesh.fsdp=3 does not match launch.processes=2" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_config_lists_every_key(tmp_path: Path) -> None:
    done = gemcutter("config", folder=tmp_path, COLUMNS="300")
    assert done.returncode == 0
    listed = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    keys = schema.flatten(schema.Job())
    assert set(keys) <= set(listed)
    assert "bf16|fp32" in listed["precision"]
    assert "32768" in listed["tokenizer.vocab_size"]
    assert "str or null" in listed["run_id"]
    for path in keys:
        assert ("(identity)" in listed[path]) == (path in schema.identity(schema.Job())), path


def test_config_narrows_to_words(tmp_path: Path) -> None:
    done = gemcutter("config", "warm-up", folder=tmp_path, COLUMNS="300")
    keys = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert "optim.warmup_steps" in keys
    assert "seed" not in keys


def test_config_on_a_narrow_terminal_puts_the_meaning_below(tmp_path: Path) -> None:
    done = gemcutter("config", folder=tmp_path, COLUMNS="80")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    first = lines.index("steps  int  1000")
    assert lines[first + 1] == "    optimizer steps"
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert heads == list(schema.flatten(schema.Job()))
    meanings = [line for line in lines if line.startswith(" ")]
    assert all(len(line) <= 80 for line in meanings)
    assert sum("(identity)" in line for line in meanings) == len(schema.identity(schema.Job()))


def test_config_finds_nothing_without_a_traceback(tmp_path: Path) -> None:
    done = gemcutter("config", "no-such-word", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""Promises of the script for GPUs, held on a CPU: each part runs, a failure stops no other, figures name the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu import run
from tests.gpu.checks import NotRun, Place, held, outcomes, run_checks

ROOT = Path(__file__).parents[2]


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python tests/gpu/run.py` as a user starts it."""
    command = [sys.executable, str(ROOT / "tests" / "gpu" / "run.py"), *arguments]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | hidden | environment, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("gpu") / "quick.json"
    done = start("--device", "cpu", "--quick", "--seconds", "220", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr + (out.read_text() if out.exists() else "")
    return json.loads(out.read_text())


def test_every_part_runs_without_a_failure(quick) -> None:
    """And what a CPU cannot do says why it was not run."""
    assert quick["work"]["checks"] == {
        "device": {"passed": 1},
        "parity": {"passed": 6 + 2 * 8, "not run": 8},  # flex has no gradients here
        "matrix": {"passed": 3 * 2 * 3 * 2 + 3, "not run": 3 * 2 * 3 * 2},  # compiled ones
        "speed": {"passed": 1, "not run": 1},
    }
    said = [check for checks in quick["details"].values() for check in checks.values()]
    assert all(check["reason"] for check in said if check["outcome"] == "not run")


def test_no_figure_passes_for_one_of_a_gpu(quick) -> None:
    assert quick["work"]["device"] == "cpu"
    assert quick["rows"]
    for row in quick["rows"]:
        assert row["figure"].endswith(", on cpu")
        assert row["met"] is None


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = start("--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 78
    assert done.stderr.startswith("no CUDA device")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def fail() -> dict:
    raise ValueError("it broke")


def cannot() -> dict:
    raise NotRun("it cannot be done here")


def test_a_check_that_fails_stops_no_other(tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"
    asked = {
        "breaks": fail,
        "misses": lambda: held({"near": (1.0, 2.0), "far": (3.0, 2.0)}),
        "is no number": lambda: held({"loss": (float("nan"), 2.0)}),
        "cannot": cannot,
        "misses a library": lambda: __import__("a_library_that_is_not_here"),
        "misses a module of ours": lambda: __import__("trainer.not_here"),
        "works": lambda: held({"near": (1.0, 2.0)}),
    }
    assert run_checks(asked, Place("cpu", True, time.time() + 60), told)
    said = outcomes(told)
    failed, absent = "failed", "not run"
    assert [check["outcome"] for check in said.values()] == [failed, failed, failed, absent, absent, failed, "passed"]
    assert "far is 3, above 2" in said["misses"]["reason"]
    assert said["works"]["found"] == {"near": {"value": 1.0, "bound": 2.0}}


def test_what_does_not_fit_the_time_is_listed_as_not_run(tmp_path: Path) -> None:
    out = tmp_path / "late.json"
    done = start("--device", "cpu", "--quick", "--seconds", "0.1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    for part in run.PARTS:
        assert {check["outcome"] for check in report["details"][part].values()} == {"not run"}
        assert {check["reason"] for check in report["details"][part].values()} == {"the time was spent"}


def test_a_process_that_dies_takes_one_check_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a lost device does; the rest is made by the next process."""

    def in_process(part: str, device: str, quick: bool, until: float, told: Path) -> tuple[int, str]:
        if (child := os.fork()) == 0:
            run_checks({"first": dict, "dies": lambda: os._exit(9), "last": dict}, Place(device, quick, until), told)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "a last word"

    monkeypatch.setattr(run, "in_process", in_process)
    said = run.told_by("parity", "cpu", True, time.time() + 60)
    assert {name: check["outcome"] for name, check in said.items()} == {
        "first": "passed", "dies": "failed", "last": "passed",
    }  # fmt: skip
    assert said["dies"]["reason"] == "the process ended with 9: a last word"

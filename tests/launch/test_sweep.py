"""`-m` sweeps: every point is a run of its own."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf import schema
from conf.exits import ConfigError
from launch import jobs

# Everything but the start of the worker: its command line is printed instead.
SWEEP = """
import json, sys
from launch import jobs, local
local.call_while = lambda stopping, arguments, environment: print(json.dumps(arguments)) or {code}
sys.exit(jobs.run_job("train", sys.argv[1:]))
"""


def sweep(folder: Path, *arguments: str, code: int = 0) -> tuple[list[list[str]], int]:
    """The worker command lines of a real `gemcutter train -m`, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", SWEEP.format(code=code), "-m", "backend=cpu", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


def run_ids(commands: list[list[str]]) -> list[str]:
    return [
        argument.removeprefix("run_id=") for line in commands for argument in line if argument.startswith("run_id=")
    ]


@pytest.mark.parametrize(
    ("arguments", "points"),
    [
        (["optim.peak_lr=1e-3,2e-3"], 2),  # part of the identity
        (["steps=100,200"], 2),  # no part of it
        (["seed=1,2", "steps=100,200"], 4),
        (["tracker=none,offline"], 2),
        (["model=tiny,gemma3_270m", "mesh.fsdp=1,2"], 4),
        (["name=a,b"], 2),
        (["tracker.tags=[a],[b]", "experiment=demo"], 2),
        (["seed=range(0,3)"], 3),
        (["mesh.fsdp=-1,1"], 2),
    ],
)
def test_points_of_a_sweep_do_not_collide(arguments: list[str], points: int, tmp_path: Path) -> None:
    commands, code = sweep(tmp_path, *arguments)
    assert code == 0
    assert len(commands) == points
    assert len(set(run_ids(commands))) == points


def test_point_carries_its_own_values_and_a_readable_id(tmp_path: Path) -> None:
    (first, second), _ = sweep(tmp_path, "steps=100,200", "optim.peak_lr=0.002")
    assert {"steps=100", "optim.peak_lr=0.002", "backend=cpu"} <= set(first)
    assert "-steps-100-" in run_ids([first])[0]
    assert "-steps-200-" in run_ids([second])[0]


def test_sweep_writes_no_timestamps(tmp_path: Path) -> None:
    """Two sweeps over the same values are the same runs, so a sweep that is started again resumes."""
    first, _ = sweep(tmp_path, "steps=100,200")
    second, _ = sweep(tmp_path, "steps=100,200")
    assert first == second


def test_failing_point_is_told_by_the_exit_code(tmp_path: Path) -> None:
    commands, code = sweep(tmp_path, "steps=100,200", code=79)
    assert code == 79
    assert len(commands) == 2


@pytest.mark.parametrize("code", [75, 130, 143])
def test_a_stop_ends_the_sweep(code: int, tmp_path: Path) -> None:
    commands, ended = sweep(tmp_path, "steps=100,200", "launch.restarts.infrastructure=0", code=code)
    assert ended == code
    assert len(commands) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config-name=mine"], "the worker reads the configuration of the package only"),
        (["-cd", "elsewhere"], "choose it with experiment=<its name>"),
        (["hydra.searchpath=[elsewhere]"], "the worker reads the configuration of the package only"),
        (["--cfg", "job", "-m"], "leave one of them out"),
    ],
)
def test_a_flag_the_worker_would_not_get_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        jobs.refuse_flags(arguments)


def test_mistake_in_one_point_stops_the_whole_sweep(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch", "train", "-m", "seed=1,two,3"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "seed=two" in done.stderr
    assert list(tmp_path.iterdir()) == []


@given(
    chosen=st.lists(
        st.sampled_from(["steps", "micro_batch", "checkpoint.every", "data.workers", "evaluate.limit"]),
        min_size=1, max_size=3, unique=True,
    ),
    values=st.lists(st.integers(1, 10**6), min_size=2, max_size=3, unique=True),
)  # fmt: skip
def test_suffixes_of_points_differ(chosen: list[str], values: list[int]) -> None:
    swept = [f"{key}={','.join(map(str, values))}" for key in chosen]
    points = [
        [f"{k}={v}" for k, v in zip(chosen, row, strict=True)] for row in itertools.product(values, repeat=len(chosen))
    ]
    suffixes = {jobs.sweep_suffix(swept, point) for point in points}
    assert len(suffixes) == len(points)


@pytest.mark.parametrize("key", ["seed", "tokens_per_step", "optim.peak_lr", "data.sequence_length"])
def test_identity_keys_need_no_suffix(key: str) -> None:
    assert key.startswith(schema.IDENTITY)
    assert jobs.sweep_suffix([f"{key}=1,2", "steps=5"], [f"{key}=1", "steps=5"]) == ""


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["steps=1", "-m", "seed=1,2"], ["steps=1", "seed=1,2"]),
        (["--cfg", "job", "steps=1"], ["steps=1"]),
        (["-c", "job", "--package", "optim", "seed=3"], ["seed=3"]),
        (["--help"], []),
    ],
)
def test_flags_are_not_overrides(arguments: list[str], overrides: list[str]) -> None:
    assert jobs.overrides_among(arguments) == overrides

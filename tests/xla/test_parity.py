"""Promises of the xla backend: what a step says on any mesh is what it says on native processes, but for rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.xla.parity import CASES, ROWS, WORLDS, Said, updates

pytestmark = pytest.mark.xla
EXACT = 1e-5  # float32 sums in another order: about a hundred roundings


@pytest.fixture(scope="module")
def native(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Said]]:
    """By the number of processes what each case says."""
    folder = tmp_path_factory.mktemp("native")
    run = subprocess.run(
        [sys.executable, "-m", "tests.xla.parity", str(folder)],
        capture_output=True, text=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return {processes: json.loads((folder / str(processes)).read_text()) for processes in WORLDS}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradient_norms_are_those_of_native_processes(native: dict[int, dict[str, Said]], name: str) -> None:
    from trainer.backend.xla import Xla

    case = CASES[name]
    job = case.job()
    ours = updates(case, job, Xla(job))
    for processes, cases in native.items():
        theirs = cases[name]
        assert len(ours) == len(theirs) == case.steps
        for value in ("loss", "grad_norm"):
            got, expected = (np.array([update[value] for update in run]) for run in (ours, theirs))
            assert np.abs(got / expected - 1).max() <= EXACT, (value, processes, got, expected)
        for update, other in zip(ours, theirs, strict=True):
            assert update["tokens"] == other["tokens"]
            assert (update["counts_K"], update["skipped"]) == ([ROWS], 0)


def test_cases_cover_what_they_are_for() -> None:
    """So that a case which is changed leaves no gap."""
    assert {(case.generation, case.mesh) for case in CASES.values()} >= {
        (generation, mesh)
        for generation in (1, 2, 3)
        for mesh in ((1, 4, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4), (4, 1, 1))
    }
    assert {case.passes for case in CASES.values()} >= {1, 2, 4}
    assert {case.remat for case in CASES.values()} == {"none", "selective", "block"}
    left = {case.config().num_layers % len(case.config().pattern) for case in CASES.values()}
    assert left >= {0, 1, 2}

"""Promises of every mesh: how processes share rows, positions, heads and parameters changes losses by rounding only."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
ROWS, STEPS, GENERATIONS, OPTIMIZERS = 4, 5, (1, 2, 3), ("adamw", "muon")  # those of `mesh_steps.py`
ALONE = "1x1x1x1"
# Sizes of replica, fsdp, context, tensor.
MESHES = (
    "1x2x1x1", "1x4x1x1", "2x2x1x1", "1x1x1x2", "1x2x1x2", "1x1x2x1", "1x2x2x1", "1x1x2x2", "2x1x1x2",
)  # fmt: skip
EXACT = 1e-5  # float32 sums in another order: about a hundred roundings


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, list[dict[str, float]]]]]:
    """Of each mesh what every process says of the updates with each optimizer of each generation."""
    folder = tmp_path_factory.mktemp("meshes")
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(Path(__file__).with_name("mesh_steps.py")), str(folder)]
    run = subprocess.run([*worker, ALONE, *MESHES], capture_output=True, text=True, env=env, timeout=280, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    ranks = {mesh: range(math.prod(map(int, mesh.split("x")))) for mesh in (ALONE, *MESHES)}
    return {mesh: [json.loads((folder / f"{mesh}.{rank}").read_text()) for rank in own] for mesh, own in ranks.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_on_every_mesh_are_those_of_one_process(said, mesh: str, generation: int, optimizer: str) -> None:
    which = f"{optimizer} {generation}"
    alone, ours = said[ALONE][0][which], said[mesh][0][which]
    for process in said[mesh]:
        assert process[which] == ours  # every process knows the same
    assert len(ours) == len(alone) == STEPS
    for name in ("loss", "grad_norm"):
        values, expected = (np.array([update[name] for update in run]) for run in (ours, alone))
        assert np.abs(values / expected - 1).max() <= EXACT, (name, values, expected)
    for update in ours:  # rows are counted once, whoever shares them
        assert (update["tokens"], update["counts_K"]) == (alone[0]["tokens"], ROWS)

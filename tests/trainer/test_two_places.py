"""Promises to who only reads a run that keeps checkpoints in two places: what a resume would go on from is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainer import checkpoint

STEP = "step-00000020"


@pytest.fixture
def places(lab, alone) -> tuple[Path, Path]:
    """Of a copy of the run `alone`: its directory, with step 20, and its bucket, which is empty."""
    lab.copy(alone, "alone")
    config = lab.folder / "runs/alone/config.yaml"
    document = yaml.safe_load(config.read_text())
    document["config"]["checkpoint"]["bucket"] = str(lab.folder / "bucket")
    config.write_text(yaml.safe_dump(document))
    (lab.folder / "bucket/alone").mkdir(parents=True)
    return lab.folder / "runs/alone/checkpoints", lab.folder / "bucket/alone"


def spoil(place: Path, what: str = "rank-00000.safetensors", step: str = STEP) -> None:
    (file,) = (place / step).glob(f"*/{what}")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def only_in_the_bucket(directory: Path, bucket: Path) -> None:
    shutil.move(directory / STEP, bucket / STEP)


def broken_in_the_directory(directory: Path, bucket: Path) -> None:
    shutil.copytree(directory / STEP, bucket / STEP)
    spoil(directory)


def older_in_the_bucket(directory: Path, bucket: Path) -> None:
    shutil.copytree(directory / STEP, bucket / "step-00000010")
    spoil(directory)


@pytest.mark.parametrize(
    ("lie", "step"), [(only_in_the_bucket, 20), (broken_in_the_directory, 20), (older_in_the_bucket, 10)]
)
def test_the_newest_good_step_is_scored_and_exported(
    places: tuple[Path, Path], lab, command, lie: Callable[[Path, Path], None], step: int
) -> None:
    lie(*places)
    before = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
    code, _, said = command("evaluate", "run=alone", "evaluate.tasks=[]", "data.held_out=null")
    assert code == 0, said
    assert ("step 20 is BROKEN: " in said) == (lie is not only_in_the_bucket)
    scores = json.loads((lab.folder / f"runs/alone/evals/step-{step:08d}.json").read_text())
    found = checkpoint.find(places[1])
    assert found is not None
    assert scores["provenance"]["checkpoint_sha256"] == found.sha256
    code, _, said = command("export", "run=alone")
    assert code == 0, said
    assert (lab.folder / f"runs/alone/exports/hf-step-{step:08d}").is_dir()
    assert {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()} == before


def test_a_step_that_is_named_comes_from_where_it_is_whole(places: tuple[Path, Path], command) -> None:
    """Never another one in its place."""
    broken_in_the_directory(*places)
    named = ("evaluate", "run=alone", "evaluate.tasks=[]", "data.held_out=null")
    assert command(*named, "step=20")[0] == 0
    spoil(places[1])
    shutil.copytree(places[1] / STEP, places[1] / "step-00000010")
    code, _, said = command(*named, "step=20")
    assert code == 79
    assert "does not have the sha256 of the manifest" in said
    code, _, said = command(*named, "step=15")
    assert code == 79
    assert all(
        f"no checkpoint of step 15 in {place}" in said.replace("runs/", f"{places[0].parents[1]}/") for place in places
    )


def test_steps_of_a_run_explain_themselves_from_the_bucket(places: tuple[Path, Path], command) -> None:
    shutil.copytree(places[0] / STEP, places[1] / "step-00000030")
    code, said, complained = command("explain", "alone", "--document", "d7")
    assert code == 0, complained
    assert "checkpoints that saw it  20, 30" in said


def test_the_command_shows_and_verifies_both_places(places: tuple[Path, Path], command) -> None:
    only_in_the_bucket(*places)
    code, said, _ = command("checkpoint", "ls", "alone")
    assert code == 0
    assert "checkpoints in runs/alone/checkpoints" in said
    assert "there are none" in said
    assert f"checkpoints in {places[1]}" in said
    assert "committed" in said
    assert command("checkpoint", "verify", "alone")[0] == 0
    assert command("checkpoint", "verify", "alone", "--step", 20)[0] == 0
    shutil.copytree(places[1] / STEP, places[0] / "step-00000010")
    code, said, _ = command("checkpoint", "diff", "alone")  # one step of each place
    assert code == 0
    assert "tensors are equal, bit for bit" in said
    spoil(places[1])
    code, said, _ = command("checkpoint", "verify", "alone")
    assert code == 79
    assert "BROKEN" in said

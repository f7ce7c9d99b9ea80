"""Promises of the command `gemcutter plan`: quick, without torch, and with an answer."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.exits import ConfigError
from trainer.__main__ import main
from trainer.plan.planned import plan_of
from trainer.plan.remedy import fitting, largest_micro_batch

BIG = ("model=gemma3_27b", "mesh.replica=16", "mesh.fsdp=64", "hardware=a3-mega")


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What the worker writes and prints for these overrides."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[dict[str, Any], str]:
        assert main("plan", [*overrides, "plan.output=plans/plan.json"]) == 0
        return json.loads(Path("plans/plan.json").read_text()), " ".join(capsys.readouterr().out.split())

    return run


def test_a_cluster_is_planned_without_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-P", "-m", "trainer", "plan", *BIG]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "trainer.plan.memory" in loaded
    assert not loaded & {"torch", "numpy", "pyarrow"}
    assert "27,009,002,240 parameters" in done.stdout
    assert "1,024 processes" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_fits_can_grow_to_the_limit_and_not_beyond(planned) -> None:
    said, shown = planned(*BIG, "remat=block", "tokens_per_step=8388608")
    assert said["fits"] is True
    assert said["tokens_per_step"] == 8_388_608
    most = said["largest_micro_batch"]
    assert f"fits; the largest micro_batch that does is {most}" in shown
    assert "cannot be shared" not in shown
    for rows, fits in ((most, True), (most + 1, False)):
        assert planned(*BIG, "remat=block", f"micro_batch={rows}")[0]["fits"] is fits


def test_what_does_not_fit_gets_remedies_that_do(planned) -> None:
    said, shown = planned(*BIG, "micro_batch=2")
    assert said["fits"] is False
    assert "does not fit" in shown
    assert len(said["remedies"]) >= 3
    changed = [remedy["changes"] for remedy in said["remedies"]]
    assert changed.index({"remat": "selective"}) < changed.index({"remat": "block"})  # what recomputes less comes first
    for remedy in said["remedies"]:
        changes = [f"{path}={value}" for path, value in remedy["changes"].items()]
        again, _ = planned(*BIG, "micro_batch=2", *changes)
        assert again["fits"] is True
        assert again["memory_bytes"]["total"] == remedy["memory_bytes"]


def test_a_pair_of_changes_is_sought_where_no_single_one_helps() -> None:
    job = compose("plan", ["model=gemma3_27b", "mesh.fsdp=8", "hardware=a3-mega", "data.sequence_length=8192"])
    remedies = list(fitting(job, plan_of(job)))
    assert remedies
    assert all("remat" in changes and len(changes) > 1 and plan.fits for changes, plan in remedies)
    assert largest_micro_batch(plan_of(job)) == 0


def test_the_rest_of_the_mesh_is_a_slice(planned) -> None:
    said, shown = planned("model=gemma3_4b", "hardware=v5p-512")
    assert (said["processes"], said["mesh"]["fsdp"]) == (256, 256)
    assert "XLA places memory itself" in shown


def test_a_batch_that_cannot_be_shared_is_answered_not_refused(planned) -> None:
    said, shown = planned(*BIG)
    assert "tokens_per_step=65536 cannot be shared by 1024 feeders" in shown
    assert said["tokens_per_step"] == 4 * 2048 * 1024
    with pytest.raises(ConfigError, match="processes cannot share evenly"):
        compose("train", BIG)


def test_the_largest_batch_of_a_ramp_is_planned(planned) -> None:
    ramp = "[{from_step: 9, tokens_per_step: 16777216}, {from_step: 99, tokens_per_step: 8388608}]"
    said, shown = planned(*BIG, "tokens_per_step=8388608", f"batch_ramp={ramp}")
    assert (said["batch"], said["tokens_per_step"]) == ("batch_ramp[0].tokens_per_step", 16_777_216)
    assert "planned for the largest batch, batch_ramp[0].tokens_per_step=16777216" in shown
    once, _ = planned(*BIG, "tokens_per_step=8388608")
    assert said["memory_bytes"]["total"] > once["memory_bytes"]["total"]  # gradients are summed over micro-batches


def test_compiled_blocks_are_said_to_hold_less(planned) -> None:
    said, shown = planned(*BIG, "micro_batch=2", "compile=true")
    assert (said["attention"], said["memory_is_upper_bound"]) == ("flex", True)
    assert "activations are at most these" in shown
    assert not planned(*BIG, "micro_batch=2", "compile=true", "remat=selective")[0]["memory_is_upper_bound"]
    eager, shown = planned(*BIG, "micro_batch=2")
    assert (eager["attention"], eager["memory_is_upper_bound"]) == ("sdpa", False)
    assert "at most these" not in shown
    assert eager["executed_flops"] > said["executed_flops"]  # a mask hides pairs that are computed all the same


def test_documents_shorten_attention(planned, corpus) -> None:
    whole, _ = planned(*BIG, "data.sequence_length=8192")
    short, _ = planned(*BIG, "data.sequence_length=8192", "plan.document_tokens=512")
    assert short["model_flops_per_token"] < whole["model_flops_per_token"]
    assert short["executed_flops"] == whole["executed_flops"]  # under a mask
    fused, _ = planned(*BIG, "data.sequence_length=8192", "plan.document_tokens=512", "attention=documents")
    assert fused["executed_flops"] < short["executed_flops"]
    own, _ = planned("backend=cpu", f"data.manifest={corpus.folder}/tokens/manifest.json")
    totals = json.loads((corpus.folder / "tokens" / "manifest.json").read_text())["totals"]
    assert own["document_tokens"] == round(totals["tokens"] / totals["documents"])


def test_without_hardware_there_is_memory_and_no_verdict(planned) -> None:
    said, shown = planned("backend=cpu")
    assert (said["fits"], said["seconds"], said["mfu"], said["largest_micro_batch"]) == (None, None, None, None)
    assert said["memory_bytes"]["total"] > 0
    assert "hardware=... says whether it fits" in shown


def test_a_model_that_the_mesh_cannot_share_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("plan", ["model=gemma3_1b", "mesh.fsdp=1", "mesh.tensor=8"]) == 78
    assert "model.num_heads=4 is not a multiple of mesh.tensor=8" in capsys.readouterr().err


def test_without_the_packages_for_tpus_there_are_formulas_and_a_hint(planned) -> None:
    said, shown = planned("model=gemma_2b", "hardware=v5e-256", "micro_batch=1")
    assert importlib.util.find_spec("torch_xla") is None  # of this environment
    assert said["compiled"] is None
    assert said["fits"] is True
    assert shown.count("make setup-tpu") == 1
    assert "not compiled: that needs the environment that `make setup-tpu` makes" in shown
    assert "make setup-tpu" not in planned("model=gemma_2b", "hardware=v5e-256", "plan.compile=false")[1]
    assert "make setup-tpu" not in planned(*BIG)[1]


def test_hardware_with_tpus_means_their_backend(planned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("plan", ["model=gemma_2b", "hardware=v5e-256", "optim=muon"]) == 78
    told = capsys.readouterr().err
    assert "hardware=v5e-256 means backend=xla" in told
    assert "use optim=adamw" in told
    said, _ = planned("model=gemma2_9b", "hardware=v5e-16", "micro_batch=4", "remat=block")
    changes = [remedy["changes"] for remedy in said["remedies"]]
    assert {"hardware": "v5e-32", "mesh.fsdp": 32} in changes
    assert not any("mesh.context" in change for change in changes)


@pytest.mark.parametrize("hardware", ["a3-mega", "v5e-64"])
def test_a_sweep_by_formulas_recommends_the_fastest_that_fits(planned, hardware: str) -> None:
    job = ("model=gemma3_4b", "mesh.replica=2", "mesh.fsdp=32", f"hardware={hardware}")
    said, shown = planned(*job, "plan.sweep=true")
    assert not said["keeps_tokens_per_step"]
    fitting = [one for one in said["candidates"] if one["fits"]]
    assert len(fitting) > 10
    assert said["recommended"] == fitting[0]["changes"]
    assert fitting[0]["tokens_per_second"] >= 0.99 * max(one["tokens_per_second"] for one in fitting)
    assert len({one["changes"].get("mesh.tensor", 1) for one in said["candidates"]}) > 2
    overrides = [f"{path}={value}" for path, value in said["recommended"].items()]
    assert f"recommended: {' '.join(overrides)}" in shown
    alone, _ = planned(*job, *overrides)
    assert alone["fits"] is True
    assert alone["tokens_per_step"] == said["recommended"]["tokens_per_step"]
    assert alone["seconds"]["step"] == fitting[0]["step_seconds"]
    assert alone["mesh"] == {axis: said["recommended"].get(f"mesh.{axis}", 1) for axis in alone["mesh"]}


def test_a_sweep_keeps_a_batch_that_the_mesh_can_share(planned) -> None:
    said, shown = planned(*BIG[:1], "mesh.fsdp=64", BIG[-1], "tokens_per_step=1048576", "plan.sweep=true")
    assert "tokens_per_step=1048576 is kept" in shown
    assert {one["tokens_per_step"] for one in said["candidates"]} == {1_048_576}
    assert all(1_048_576 // 2048 % one["changes"]["micro_batch"] == 0 for one in said["candidates"])


def test_a_sweep_needs_something_to_rank_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("plan", ["model=gemma3_1b", "plan.sweep=true"]) == 78
    assert "name it with hardware=" in capsys.readouterr().err
    assert main("plan", ["model=gemma3_1b", "hardware=a3-mega", "precision=fp32", "plan.sweep=true"]) == 78
    assert "use precision=bf16" in capsys.readouterr().err

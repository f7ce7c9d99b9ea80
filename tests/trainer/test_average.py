"""Promises of the average of the weights: its formula, the same on every mesh and after a restart, and of use."""

from __future__ import annotations

import json

import pytest
import torch

from conf.compose import compose
from trainer import checkpoint
from trainer.__main__ import main

EMA = ("optim.ema=0.5", "checkpoint.every=1", "checkpoint.keep_last=100")
EXACT = 1e-5  # sums of float32 in another order


@pytest.fixture(scope="module")
def averaged(shared_lab):
    return shared_lab.train("averaged", *EMA, shared_lab.corpus.held_out)


def tensors(running, step: int) -> dict[str, torch.Tensor]:
    found = checkpoint.find(running.folder / "checkpoints", step)
    assert found is not None
    return {name: checkpoint.read_tensor(found, name) for name in found.tensors}


def names(running) -> list[str]:
    return [name.removeprefix("model.") for name in tensors(running, 20) if name.startswith("model.")]


def test_it_is_that_of_the_formula_over_the_weights_of_each_step(averaged) -> None:
    """From the weights of each step's own checkpoint, in float64."""
    before = tensors(averaged, 1)
    expected = {name: before[f"ema.{name}"].double() for name in names(averaged)}
    for step in range(2, 21):
        share = 1 - min(0.5, (1 + step) / (10 + step))
        now = tensors(averaged, step)
        for name, mean in expected.items():
            mean.lerp_(now[f"model.{name}"].double(), share)
            assert (now[f"ema.{name}"] - mean).norm() <= 1e-6 * max(1.0, mean.norm()), (step, name)


def test_training_does_not_notice_it(averaged, alone) -> None:
    assert averaged.column("loss") == alone.column("loss")
    ours = averaged.tensors()
    assert all(torch.equal(ours[name], tensor) for name, tensor in alone.tensors().items())


def test_on_other_meshes_it_is_the_same(lab, averaged) -> None:
    ours = lab.train("shared", *EMA, "mesh.fsdp=2", "mesh.tensor=2", processes=4).tensors()
    for name, expected in averaged.tensors().items():
        assert (ours[name] - expected).norm() <= EXACT * expected.norm(), name


def test_a_restart_goes_on_with_it_exactly(lab, averaged) -> None:
    lab.copy(averaged, "again")
    for step in range(8, 21):
        (lab.folder / "runs" / "again" / "checkpoints" / checkpoint.step_name(step) / "COMMIT").unlink()
    resumed = lab.train("again", *EMA)
    assert resumed.column("attempt") == [1] * 7 + [2] * 13
    ours = resumed.tensors()
    assert all(torch.equal(ours[name], tensor) for name, tensor in averaged.tensors().items())


def test_a_run_may_begin_one_and_end_it(inside, lab, alone) -> None:
    lab.copy(alone, "begins")
    assert inside("begins", "steps=21", "optim.ema=0.5", "optim.schedule=cosine")[0] == 0
    now = tensors(lab.run("begins"), 21)
    for name, was in alone.tensors().items():
        if name.startswith("model."):
            half = was.lerp(now[name], 0.5)  # of the two weights it has seen
            assert torch.allclose(now[name.replace("model.", "ema.", 1)], half, rtol=1e-6, atol=1e-7), name
    (lab.folder / "runs" / "begins" / ".lock").unlink()  # a lock ends with its process, and this one goes on
    assert inside("begins", "steps=22", "optim.schedule=cosine")[0] == 0
    assert not any(name.startswith("ema.") for name in tensors(lab.run("begins"), 22))


@pytest.fixture
def job(lab, averaged, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """A job on the averaged run, in this process. Gives (exit code, what it said)."""
    lab.copy(averaged, "averaged")
    monkeypatch.chdir(lab.folder)

    def run(kind: str, *changes: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main(kind, ["run=averaged", *changes])
        return code, capfd.readouterr().err

    return run


def test_export_and_scores_take_the_average_that_is_asked_for(job, lab, averaged) -> None:
    from safetensors.torch import load_file

    folder = lab.folder / "runs" / "averaged"
    for changes in ((), ("weights=ema",)):
        assert job("export", *changes)[0] == 0
        assert job("evaluate", "evaluate.tasks=[]", *changes)[0] == 0
    own, mean = (
        load_file(folder / "exports" / f"hf-step-00000020{suffix}" / "model.safetensors") for suffix in ("", "-ema")
    )
    whole = averaged.tensors()
    assert torch.equal(own["model.norm.weight"], whole["model.final_norm.weight"])
    assert torch.equal(mean["model.norm.weight"], whole["ema.final_norm.weight"])
    assert not torch.equal(own["model.norm.weight"], mean["model.norm.weight"])
    said = [json.loads((folder / "evals" / f"step-00000020{suffix}.json").read_text()) for suffix in ("", "-ema")]
    assert [each["provenance"].get("weights") for each in said] == [None, "ema"]
    assert said[0]["bits_per_byte"]["value"] != said[1]["bits_per_byte"]["value"]


def test_a_run_without_one_says_so(
    lab, alone, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lab.copy(alone, "plain")
    monkeypatch.chdir(lab.folder)
    for kind in ("export", "evaluate"):
        assert main(kind, ["run=plain", "weights=ema"]) == 78
        said = capfd.readouterr().err
        assert "weights=ema, but step 20 of runs/plain has no average of the weights" in said
        assert "use weights=model, or train on with optim.ema" in said


def test_wrong_values_are_refused() -> None:
    from conf.exits import ConfigError

    with pytest.raises(ConfigError, match=r"optim\.ema=1\.0 must lie between 0 and 1, and below 1"):
        compose("train", ["optim.ema=1.0"])
    with pytest.raises(ConfigError, match="weights=mean is not one of model, ema"):
        compose("export", ["weights=mean"])

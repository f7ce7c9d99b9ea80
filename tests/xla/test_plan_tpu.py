"""`gemcutter plan` for TPU slices: the training step itself is traced, compiled and judged; nothing is executed.

Runs in .venv-tpu (make test-tpu). Steps of the model `tiny` and small slices, so that each compiles in seconds.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from trainer.__main__ import main
from trainer.backend.xla.backend import Chips
from trainer.plan.flops import executed_flops
from trainer.plan.planned import on_hardware, plan_of
from trainer.plan.tpu import hlo
from trainer.plan.tpu.compiled import planned_step
from trainer.plan.tpu.loops import Frame, trips, within
from trainer.plan.tpu.step import traced

pytestmark = pytest.mark.xla

Planned = Callable[..., tuple[dict[str, Any], str]]
SMALL = (
    "model=tiny", "model.num_layers=2", "hardware=v5e-16", "data.sequence_length=256", "micro_batch=1",
    "tokens_per_step=4096", "remat=block",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where results are kept between plans of this file."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def planned(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """What the job writes and prints for these overrides."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[dict[str, Any], str]:
        assert main("plan", [*overrides, "plan.output=plan.json"]) == 0
        return json.loads(Path("plan.json").read_text()), " ".join(capsys.readouterr().out.split())

    return run


def kept(home: Path) -> set[Path]:
    return set((home / ".cache" / "gemcutter" / "tpu-plans").glob("*.json"))


def test_the_step_is_compiled_for_its_slice(planned: Planned) -> None:
    said, shown = planned(*SMALL)
    one, numbers = said["compiled"], said["model"]["parameters"]
    assert (one["topology"], one["chips"], one["versions"]["libtpu"]) == ("v5e:4x4", 16, "0.0.21")
    assert said["fits"] is one["fits"] is True
    assert one["hbm_bytes"] == one["argument_bytes"] + one["output_bytes"] + one["temporary_bytes"] < one["limit_bytes"]
    assert 1 <= one["argument_bytes"] / (12 * numbers / 16) < 1.3  # weights and two moments, in whole tiles
    assert one["donated"] >= 3 * 11  # each of them is updated in place
    assert one["received_bytes"] == sum(kind["received_bytes"] for kind in one["traffic"].values())
    assert {"all-gather", "reduce-scatter"} <= set(one["traffic"])
    assert one["floor_bytes"]["weights"] == round(15 / 16 * numbers * (2 + 2 + 4)) == one["floor_bytes"]["total"]
    assert 0.6 < one["ratio"] < 1.2  # the embedding, most of this model, is gathered once
    time = one["step_seconds"]
    assert time["step"] == max(time["compute"], time["memory"], time["overlapped"])
    assert time["compute"] == pytest.approx(said["executed_flops"] / 197e12)
    assert one["mfu"] == pytest.approx(said["model_flops_per_token"] * 4096 / (time["step"] * 197e12 * 16))
    for words in ("fits, says libtpu 0.0.21 for v5e:4x4", "all over the least", "temporaries", "TFLOP", "MFU"):
        assert words in shown


def test_a_second_plan_finds_the_result(planned: Planned, home: Path) -> None:
    first, _ = planned(*SMALL)
    files, began = kept(home), time.monotonic()
    again, _ = planned(*SMALL, "name=other", "steps=7")
    assert time.monotonic() - began < 2  # nothing is traced
    assert again["compiled"] == first["compiled"]
    assert kept(home) == files
    # Traced again, but to the same program: what it is updated with lies on the host.
    same, _ = planned(*SMALL, "optim.max_skipped=3")
    assert same["compiled"] == first["compiled"]
    assert len(kept(home)) == len(files) + 1


def test_micro_batches_are_a_loop_of_the_program(planned: Planned) -> None:
    once, _ = planned(*SMALL)
    twice, _ = planned(*SMALL, "tokens_per_step=8192")
    assert (once["micro_batches"], twice["micro_batches"]) == (1, 2)
    one, two = once["compiled"], twice["compiled"]
    assert two["floor_bytes"]["total"] == 2 * one["floor_bytes"]["total"]
    assert 1.8 < two["received_bytes"] / one["received_bytes"] < 2.2
    assert two["hbm_bytes"] > one["hbm_bytes"]  # gradients are summed beside the passes


def test_slices_are_replicas_that_exchange_over_the_network(planned: Planned) -> None:
    said, shown = planned(*SMALL, "hardware=v5e-4", "mesh.replica=2", "mesh.fsdp=4")
    one = said["compiled"]
    assert one["chips"] == 8
    between = {kind: count for kind, count in one["traffic"].items() if kind.endswith("between slices")}
    received = sum(count["received_bytes"] for count in between.values())
    assert one["floor_bytes"]["replicas"] == round(2 * 1 / 2 * said["model"]["parameters"] / 4 * 4)
    assert 0.95 < received / one["floor_bytes"]["replicas"] < 1.1
    assert "exchanges over links and network" in shown


def test_what_does_not_fit_names_its_buffers_and_what_to_change(planned: Planned) -> None:
    said, shown = planned("model=gemma_2b", "hardware=v5e-16", "micro_batch=16", "remat=selective")
    one = said["compiled"]
    assert said["fits"] is one["fits"] is False
    assert one["hbm_bytes"] > one["limit_bytes"]
    assert one["buffers"][0]["bytes"] >= one["buffers"][1]["bytes"] > 2**30
    assert one["buffers"][0]["shape"] in shown
    assert one["buffers"][0]["source"]
    assert "does not fit, says libtpu 0.0.21" in shown
    assert "by formulas: estimates" in shown
    assert {"remat": "block"} in [remedy["changes"] for remedy in said["remedies"]]


def test_a_sweep_recommends_what_fits_and_is_at_hand_again(planned: Planned) -> None:
    tiny = ("model=tiny", "model.num_layers=1", "model.num_heads=2", "data.sequence_length=128", "hardware=v5e-4")
    sweep = (*tiny, "tokens_per_step=1024", "plan.sweep=true")
    said, shown = planned(*sweep)
    changes = [one["changes"] for one in said["candidates"]]
    assert said["keeps_tokens_per_step"]
    assert {(one["mesh.fsdp"], one.get("mesh.tensor", 1)) for one in changes} == {(4, 1), (2, 2)}
    assert {one["remat"] for one in changes} == {"selective", "block"}
    assert {one["micro_batch"] for one in changes} <= {1, 2, 4}  # which divide 8 rows on 4 or 2 places
    fitting = [one for one in said["candidates"] if one["fits"]]
    assert said["recommended"] == fitting[0]["changes"]
    assert fitting[0]["tokens_per_second"] >= 0.99 * max(one["tokens_per_second"] for one in fitting)
    assert "recommended: mesh.fsdp=" in shown

    alone, _ = planned(
        *tiny, "tokens_per_step=1024", *(f"{path}={value}" for path, value in said["recommended"].items())
    )
    assert alone["fits"] is True
    assert alone["compiled"] == fitting[0]["compiled"]
    began = time.monotonic()
    again, _ = planned(*sweep)
    assert time.monotonic() - began < 2
    assert again == said


def test_what_chips_cannot_share_is_refused_without_a_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert main("plan", ["model=gemma2_2b", "model.vocab_size=256001", "hardware=v5e-16", "mesh.tensor=2"]) == 78
    assert "the vocabulary of 256001 words is not a multiple of mesh.tensor=2" in capsys.readouterr().err
    assert main("plan", ["model=tiny", "hardware=v5e-16", "mesh.replica=24"]) == 78
    assert "a mesh of 24 chips is none of whole slices: hardware=v5e-16 has 16" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "found"), [("libtpu", "0.0.46"), ("jax", "0.11.1"), ("torch_xla", "2.8.0")])
def test_other_versions_are_told_not_traced_back(tmp_path: Path, root: Path, package: str, found: str) -> None:
    """The metadata of another version comes first on the path."""
    metadata = tmp_path / f"{package}-{found}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {found}\n")
    command = [sys.executable, "-m", "trainer", "plan", *SMALL]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert package in done.stderr
    assert found in done.stderr
    assert "make setup-tpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tracer_that_ends_is_told(tmp_path: Path, root: Path) -> None:
    (tmp_path / "torch_xla").mkdir()
    (tmp_path / "torch_xla" / "__init__.py").write_text("raise ImportError('no such symbol')\n")
    command = [sys.executable, "-m", "trainer", "plan", *SMALL]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gemcutter plan: the step could not be traced" in done.stderr
    assert "no such symbol" in done.stderr
    assert "plan.compile=false plans by formulas only" in done.stderr


@pytest.mark.parametrize(("tensor", "key_heads"), [(1, 1), (2, 1), (4, 2)])
@pytest.mark.parametrize("remat", ["none", "selective", "block"])
@pytest.mark.parametrize("norms", ["gemma_2b", "gemma3_1b"])
def test_our_count_of_operations_is_that_of_the_traced_program(
    norms: str, remat: str, tensor: int, key_heads: int
) -> None:
    """Product by product, each as often as its loops run. Splash attention is one opaque call: the plain formula here.

    Key heads of their own or one that chips share, words that shards do not divide, a window, and layers behind the
    last whole period of their pattern.
    """
    overrides = [
        f"model={norms}", "model.num_layers=3", "model.d_model=64", "model.d_ff=128", "model.num_heads=4",
        f"model.num_kv_heads={key_heads}", "model.head_dim=16", "tokenizer.vocab_size=1000",
        f"model.vocab_size={1000 + max(2, tensor)}", f"mesh.tensor={tensor}", "hardware=v5e-4", "micro_batch=2",
        "data.sequence_length=64", f"remat={remat}", "attention=reference", "tokens_per_step=512",
    ]  # fmt: skip
    job = on_hardware(compose("plan", overrides))
    plan = plan_of(job)
    step = planned_step(job, plan)
    chips = Chips(4, torus=(2, 2), described=True)
    module = hlo.parse(traced(step.job, step.config, chips, plan.micro_batches).hlo)
    found = products(Frame(module, module.entry, lambda index: None))
    assert found == plan.micro_batches * executed_flops(plan.layout)


def products(frame: Frame) -> int:
    """Operations of all matrix products of a computation, one for each multiplication and each addition."""
    total = 0
    for one in frame.instructions.values():
        if one.opcode == "dot":
            left = dimensions(frame.instructions[one.operands[0]].type)
            over = one.attributes.split("lhs_contracting_dims={")[1].split("}")[0]
            total += 2 * math.prod(dimensions(one.type)) * math.prod(left[int(dim)] for dim in over.split(","))
        elif one.opcode == "while" and (body := one.called("body")):
            often = trips(frame, one)
            assert often is not None
            total += often * products(within(frame, one, body))
        elif one.opcode == "call" and (called := one.called("to_apply")):
            total += products(frame.called(called, one.operands))
        assert one.opcode not in ("convolution", "conditional")
    return total


def dimensions(shape: str) -> list[int]:
    return [int(size) for size in shape.split("[")[1].split("]")[0].split(",") if size]

"""Checkpoints load in the JAX package gemma with our logits, and come back bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.compose import compose
from conf.exits import ConfigError, DataError
from conf.schema import Model
from data_pipeline.tokenizer import Tokenizer
from tests.trainer.formats import config_of, logits_of, needs_formats, random_weights, relative, run, tokens_of
from trainer import checkpoint
from trainer.backend import choose
from trainer.export.jax import export_jax, transposed
from trainer.model import SIZES, GemmaConfig
from trainer.run_directory import RunDirectory

FORMATS = Path(__file__).parents[1] / "formats"
ROWS = 640
# Shared, grouped and full key heads: the package keeps them in other arrays. The 27B sizes scale queries by width.
CASES = {
    "1-3-1-0": (1, {"num_layers": 3, "num_kv_heads": 1}),
    "1-3-4-0": (1, {"num_layers": 3, "num_kv_heads": 4}),
    "2-5-2-0": (2, {"num_layers": 5, "num_kv_heads": 2}),
    "2-3-4-1": (2, {"num_layers": 3, "num_kv_heads": 4}),
    "3-8-2-0": (3, {"num_layers": 8, "num_kv_heads": 2}),
    "3-7-1-1": (3, {"num_layers": 7, "num_kv_heads": 1}),
}


def case_config(name: str, pieces: int) -> GemmaConfig:
    generation, changes = CASES[name]
    config = config_of(generation, pieces, vocab_size=ROWS, **changes)
    return dataclasses.replace(config, query_pre_attention=12) if name.endswith("-1") else config


@dataclasses.dataclass
class Cases:
    """`folder/<name>` is a case of `tests/formats/jax_logits.py`."""

    folder: Path
    tokenizer: Path
    configs: dict[str, GemmaConfig]
    weights: dict[str, dict[str, torch.Tensor]]


def keep_run(config: GemmaConfig, weights: dict[str, torch.Tensor], tokenizer: Path, run_id: str) -> None:
    """A run with these weights, all of their rows, as training leaves it."""
    folder = Path("runs", run_id)
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    job = compose("train", ["backend=cpu", f"run_id={run_id}"])
    directory = RunDirectory(job)
    directory.claim()
    directory.keep_config()
    state = {"step": 0, "tokens_seen": 0, "model": dataclasses.asdict(config), "identity": {}, "origin": {}}
    backend = choose(job)
    named = {f"model.{name}": weight for name, weight in weights.items()}
    checkpoint.save(directory.checkpoints, 0, "a", named, state, backend)
    backend.close()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, corpus) -> Cases:
    """Exported by the job, and imported again, in one process that has JAX."""
    root = tmp_path_factory.mktemp("jax")
    tokenizer = corpus.folder / "tokenizer.model"
    pieces = Tokenizer.load(tokenizer).vocab_size
    made = Cases(root / "cases", tokenizer, {}, {})
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in CASES:
            made.configs[name] = config = case_config(name, pieces)
            made.weights[name] = random_weights(config)
            case = made.folder / name
            case.mkdir(parents=True)
            np.save(case / "tokens.npy", tokens_of(pieces).numpy().astype(np.int32))
            keep_run(config, made.weights[name], tokenizer, f"run-{name}")
            out = ["export", f"run=run-{name}", "export.format=jax", f"export.output={case}/export"]
            back = ["import", "pretrained.format=jax", "backend=cpu"]
            jobs += [out, out, [*back, f"pretrained.folder={case}/export", f"run_id=back-{name}"]]
        # A checkpoint alone, as Google publishes it: the keys of the job say what model it is.
        shape = ("num_layers=8", "d_model=48", "d_ff=80", "num_heads=4", "num_kv_heads=2", "head_dim=16", "window=10")
        keys = ["model=gemma3_4b", *(f"model.{key}" for key in shape), f"tokenizer.model={tokenizer}"]
        jobs += [[*back, *keys, f"pretrained.folder={made.folder}/3-8-2-0/export/params", "run_id=bare"]]
        half = ["export", "run=run-3-8-2-0", "export.format=jax", "export.dtype=bf16", "export.output=half"]
        jobs += [half, [*back, "pretrained.folder=half", "run_id=half"]]
        run(FORMATS / "jobs.py", json.dumps(jobs), folder=root)
        run(FORMATS / "jax_logits.py", made.folder)
    return made


def found(cases: Cases, run_id: str) -> checkpoint.Committed:
    committed = checkpoint.find(cases.folder.parent / "runs" / run_id / "checkpoints")
    assert committed is not None
    return committed


@needs_formats
@pytest.mark.parametrize("name", CASES)
def test_the_package_gemma_loads_the_checkpoint_with_equal_logits(cases: Cases, name: str) -> None:
    pieces = Tokenizer.load(cases.tokenizer).vocab_size
    ours = logits_of(cases.configs[name], cases.weights[name], tokens_of(pieces))
    theirs = torch.from_numpy(np.load(cases.folder / name / "logits.npy"))
    assert theirs.shape == ours.shape == (2, 29, ROWS)
    assert relative(theirs, ours) <= 1e-4
    if cases.configs[name].final_soft_cap:
        assert theirs.abs().max() > 0.9 * cases.configs[name].final_soft_cap  # the cap bites


@needs_formats
@pytest.mark.parametrize("name", CASES)
def test_jax_and_back_is_bit_equal(cases: Cases, name: str) -> None:
    back = found(cases, f"back-{name}")
    assert back.state["model"] == json.loads(json.dumps(dataclasses.asdict(cases.configs[name])))
    for parameter, weight in cases.weights[name].items():
        assert torch.equal(checkpoint.read_tensor(back, f"model.{parameter}"), weight), parameter
    kept = cases.folder.parent / f"runs/back-{name}/tokenizer.model"
    assert kept.read_bytes() == cases.tokenizer.read_bytes()


@needs_formats
def test_a_bare_checkpoint_is_read_as_the_keys_say(cases: Cases) -> None:
    bare, whole = found(cases, "bare"), found(cases, "back-3-8-2-0")
    assert bare.state["model"] == whole.state["model"]
    for name in whole.tensors:
        assert torch.equal(checkpoint.read_tensor(bare, name), checkpoint.read_tensor(whole, name)), name


@needs_formats
def test_bf16_is_rounded_once_and_comes_back_as_bf16(cases: Cases) -> None:
    half = found(cases, "half")
    for name, weight in cases.weights["3-8-2-0"].items():
        back = checkpoint.read_tensor(half, f"model.{name}")
        assert back.dtype == torch.bfloat16
        assert torch.equal(back, weight.bfloat16()), name


def test_the_released_sizes_that_store_gates_transposed() -> None:
    """As the package's own table of sizes has it (gemma 3.3.0, gm/nn/_gemma.py)."""
    plain = {"gemma_2b", "gemma_7b", "gemma2_2b"}
    assert {name for name in SIZES.keys() - {"tiny"} if not transposed(SIZES[name])} == plain


def test_another_epsilon_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(SIZES["gemma_2b"], norm_eps=1e-5)
    with pytest.raises(ConfigError, match="norm_eps=1e-05"):
        export_jax(config, {}, tmp_path / "tokenizer.model", 256, tmp_path / "export", "fp32", {})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from trainer.export import jax as module

    config = config_of(3, 512)
    sizes = module.shapes(config)
    stored = {
        path: leaf.there([torch.zeros(sizes[name]) for name in leaf.names])
        for path, leaf in module._leaves(config, True).items()
    }
    monkeypatch.setattr(module, "_restore", lambda where: stored)
    model = Model(size="gemma3_4b", num_layers=8, d_model=48, d_ff=80, num_heads=4, num_kv_heads=2, head_dim=16)
    assert module.open_jax(tmp_path, model).config.d_ff == 80
    with pytest.raises(ConfigError, match=r"gating_einsum is \(2, 80, 48\), not .*Choose its size with model=<size>"):
        module.open_jax(tmp_path, dataclasses.replace(model, d_ff=96))
    with pytest.raises(ConfigError, match="kv_einsum/w is missing"):
        module.open_jax(tmp_path, dataclasses.replace(model, num_layers=9))
    note = {"model": dataclasses.asdict(config), "provenance": {"weights_sha256": "of other weights"}}
    (tmp_path / "gemcutter.json").write_text(json.dumps(note))
    with pytest.raises(DataError, match="says of other we"):
        module.open_jax(tmp_path, model)
    (tmp_path / "gemcutter.json").unlink()
    with pytest.raises(ConfigError, match="layer_0/attn/_query_norm/scale is unknown"):
        module.open_jax(tmp_path, dataclasses.replace(model, size="gemma2_2b"))

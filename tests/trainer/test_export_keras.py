"""Presets load in KerasHub under each backend of Keras 3 with our logits, and come back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.exits import DONE, ConfigError, DataError
from data_pipeline.tokenizer import Tokenizer
from tests.trainer.formats import config_of, logits_of, needs_formats, random_weights, relative, run, tokens_of
from trainer import checkpoint
from trainer.__main__ import main
from trainer.export import export_hf
from trainer.export.keras import export_keras, open_keras
from trainer.model import SIZES, GemmaConfig

BACKENDS = ("torch", "jax", "tensorflow")
TEXT = "The river carries 42 boats.\n\n  It's élan"


@dataclasses.dataclass
class Cases:
    """`folder/<generation>` is a case of `tests/formats/keras_logits.py`."""

    folder: Path
    tokenizer: Path
    configs: dict[int, GemmaConfig]
    weights: dict[int, dict[str, torch.Tensor]]

    def found(self, run_id: str) -> checkpoint.Committed:
        found = checkpoint.find(self.folder.parent / "runs" / run_id / "checkpoints")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, corpus) -> Cases:
    """Exported by the job, and imported again, in one process that has Keras."""
    root = tmp_path_factory.mktemp("keras")
    tokenizer = corpus.folder / "tokenizer.model"
    pieces = Tokenizer.load(tokenizer).vocab_size
    made = Cases(root / "cases", tokenizer, {}, {})
    jobs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for generation in (1, 2, 3):
            config = config_of(generation, pieces, vocab_size=640)
            made.configs[generation], made.weights[generation] = config, random_weights(config)
            case = made.folder / str(generation)
            case.mkdir(parents=True)
            np.save(case / "tokens.npy", tokens_of(pieces).numpy().astype(np.int32))
            (case / "text.txt").write_text(TEXT)
            export_hf(config, made.weights[generation], tokenizer, pieces, root / f"hf{generation}", "fp32", {})
            assert (
                main("import", [f"pretrained.folder=hf{generation}", f"run_id=run{generation}", "backend=cpu"]) == DONE
            )
            out = ["export", f"run=run{generation}", "export.format=keras", f"export.output={case}/preset"]
            back = ["import", "pretrained.format=keras", "backend=cpu"]
            jobs += [out, out]  # the second finds the same bytes, or is refused
            jobs += [[*back, f"pretrained.folder={case}/preset", f"run_id=back{generation}"]]
        half = ["export", "run=run3", "export.format=keras", "export.dtype=bf16", "export.output=half"]
        jobs += [half, [*back, "pretrained.folder=half", "run_id=half"]]
        run(Path(__file__).parents[1] / "formats/jobs.py", json.dumps(jobs), folder=root)
    return made


@needs_formats
@pytest.mark.parametrize("backend", BACKENDS)
def test_keras_hub_loads_the_preset_with_equal_logits(cases: Cases, backend: str) -> None:
    run(Path(__file__).parents[1] / "formats/keras_logits.py", cases.folder, KERAS_BACKEND=backend)
    tokenizer = Tokenizer.load(cases.tokenizer)
    for generation, config in cases.configs.items():
        case = cases.folder / str(generation)
        said = json.loads((case / f"{backend}.json").read_text())
        assert (said["class"], said["backend"]) == ("Gemma3CausalLM" if generation == 3 else "GemmaCausalLM", backend)
        assert said["rows"] == tokenizer.vocab_size
        assert said["ids"] == tokenizer.encode(TEXT)
        assert said["query scale"] is True  # once it is False, the 27B sizes need not be refused any more
        ours = logits_of(config, cases.weights[generation], tokens_of(tokenizer.vocab_size))
        theirs = torch.from_numpy(np.load(case / f"{backend}.npy"))
        assert theirs.shape == (*ours.shape[:2], tokenizer.vocab_size)
        error = relative(theirs, ours[..., : tokenizer.vocab_size])
        assert error <= 1e-5, (generation, error)
        if config.final_soft_cap:
            assert theirs.abs().max() > 0.9 * config.final_soft_cap  # the cap bites


@needs_formats
def test_keras_and_back_is_bit_equal(cases: Cases) -> None:
    pieces = Tokenizer.load(cases.tokenizer).vocab_size
    for generation, weights in cases.weights.items():
        found, config = cases.found(f"back{generation}"), cases.configs[generation]
        state = found.state["model"] | {"max_positions": config.max_positions}  # which a preset does not say
        assert state == json.loads(json.dumps(dataclasses.asdict(config) | {"vocab_size": 512}))
        for name, weight in weights.items():
            back = checkpoint.read_tensor(found, f"model.{name}")
            assert back.dtype == torch.float32
            assert torch.equal(back, weight[:pieces] if name == "embedding.weight" else weight), (generation, name)
    assert (cases.folder.parent / "runs/back1/tokenizer.model").read_bytes() == cases.tokenizer.read_bytes()


@needs_formats
def test_bf16_is_rounded_once_and_comes_back_as_bf16(cases: Cases) -> None:
    found = cases.found("half")
    for name, weight in cases.weights[3].items():
        back = checkpoint.read_tensor(found, f"model.{name}")
        assert back.dtype == torch.bfloat16
        assert torch.equal(back, weight[: len(back)].bfloat16()), name


@needs_formats
def test_a_preset_without_weights_is_refused(cases: Cases, tmp_path: Path) -> None:
    shutil.copytree(cases.folder / "1/preset", tmp_path / "preset")
    (tmp_path / "preset/model.weights.h5").unlink()
    with pytest.raises(DataError, match=r"has no model.weights.h5 and no model.weights.json"):
        open_keras(tmp_path / "preset")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SIZES["gemma2_27b"], "root of 144, not of head_dim=128"),
        (SIZES["gemma3_27b"], "root of 168, not of head_dim=128"),
        (dataclasses.replace(SIZES["gemma3_1b"], rope_base_global=5e5), "rope_base_global=500000.0"),
        (dataclasses.replace(SIZES["gemma_2b"], norm_eps=1e-5), "norm_eps=1e-05"),
        (
            dataclasses.replace(SIZES["gemma2_2b"], pattern=("global", "local")),
            "kinds of layers other than local/global",
        ),
    ],
)
def test_what_keras_hub_would_compute_otherwise_is_refused(config: GemmaConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export_keras(config, {}, tmp_path / "tokenizer.model", 256, tmp_path / "preset", "fp32", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registered_name": "keras_hub>LlamaBackbone"}, "of LlamaBackbone, not one of GemmaBackbone, Gemma3Backbone"),
        ({"vision_encoder": {"class_name": "Gemma3VisionEncoder"}}, "vision_encoder"),
        ({"query_head_dim_normalize": False}, "query_head_dim_normalize=False"),
        ({"use_query_key_norm": False}, "use_query_key_norm=False"),
        ({"dtype": {"class_name": "DTypePolicy", "config": {"name": "int8_from_float32"}}}, "dtype=int8_from_float32"),
        ({"num_layers": None}, "lacks 'num_layers'"),
    ],
)
def test_a_preset_of_another_model_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    numbers = {
        "vocabulary_size": 256, "num_layers": 2, "num_query_heads": 2, "num_key_value_heads": 1, "hidden_dim": 8,
        "intermediate_dim": 16, "head_dim": 4, "sliding_window_size": 4, "attention_logit_soft_cap": None,
        "final_logit_soft_cap": None, "layer_norm_epsilon": 1e-6, "use_post_attention_norm": True,
        "use_post_ffw_norm": True, "use_query_key_norm": True, "use_sliding_window_attention": True,
    }  # fmt: skip
    name = change.pop("registered_name", "keras_hub>Gemma3Backbone")
    values = {key: value for key, value in (numbers | change).items() if key != "num_layers" or value is not None}
    (tmp_path / "config.json").write_text(json.dumps({"registered_name": name, "config": values}))
    with pytest.raises(ConfigError, match=message):
        open_keras(tmp_path)

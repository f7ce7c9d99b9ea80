"""A Hugging Face folder becomes a run bit for bit, a run can begin with it, and what is no Gemma is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conf.compose import compose
from conf.exits import CONFIG, DATA, DONE, ConfigError, DataError
from conf.schema import Model
from data_pipeline.tokenizer import Tokenizer
from trainer import checkpoint
from trainer.__main__ import main
from trainer.export import export_hf
from trainer.export.hf_config import gemma_config, hf_config
from trainer.export.hf_read import open_hf
from trainer.model import SIZES, Gemma, GemmaConfig, build_config

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TABLE = {1: "gemma_2b", 2: "gemma2_27b", 3: "gemma3_27b"}  # the 27B sizes scale queries by width per head
SHAPE = ("num_layers=7", "d_model=32", "d_ff=56", "num_heads=4", "num_kv_heads=2", "head_dim=16")


def config_of(generation: int, pieces: int, **changes) -> GemmaConfig:
    shape = {name: int(value) for name, value in (part.split("=") for part in SHAPE)}
    return build_config(Model(size=TABLE[generation], **(shape | {"vocab_size": 512} | changes)), pieces)


def random_weights(config: GemmaConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(parameter.shape, generator=generator) * 0.3
        for name, parameter in Gemma(config).named_parameters()
    }


def export(generation: int, tokenizer: Path, folder: Path, dtype: str = "fp32"):
    pieces = Tokenizer.load(tokenizer).vocab_size
    config = config_of(generation, pieces)
    weights = random_weights(config)
    export_hf(config, weights, tokenizer, pieces, folder, dtype, {})
    return config, weights


@pytest.fixture
def tokenizer(corpus) -> Path:
    return corpus.folder / "tokenizer.model"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(folder: Path, run_id: str, *changes: str) -> checkpoint.Committed:
    arguments = [f"pretrained.folder={folder}", f"run_id={run_id}", "backend=cpu", "tracker=none", *changes]
    assert main("import", arguments) == DONE
    found = checkpoint.find(Path("runs", run_id, "checkpoints"))
    assert found is not None
    return found


@pytest.mark.parametrize("size", sorted(SIZES.keys() - {"tiny"}))
def test_a_config_that_is_written_is_read_back(size: str) -> None:
    config = SIZES[size]
    assert gemma_config(hf_config(config, config.vocab_size)) == config


@pytest.mark.parametrize("size", ["gemma_7b", "gemma2_27b", "gemma3_1b", "gemma3_27b"])
def test_a_config_that_transformers_writes_is_read(size: str) -> None:
    import transformers

    config = SIZES[size]
    kinds = {1: transformers.GemmaConfig, 2: transformers.Gemma2Config, 3: transformers.Gemma3TextConfig}
    theirs = kinds[config.generation](**hf_config(config, config.vocab_size))
    assert gemma_config(json.loads(theirs.to_json_string(use_diff=False))) == config
    assert gemma_config(json.loads(theirs.to_json_string(use_diff=True))) == config


# As the files released with transformers 4 are: Gemma 3 4B says little, the first Gemma says gelu.
RELEASED = {
    "gemma3_4b": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    },
    "gemma3_1b": {
        "attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "gemma2_2b": {
        "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
        "sliding_window": 4096, "vocab_size": 256000,
    },
    "gemma_2b": {
        "attention_bias": False, "attention_dropout": 0.0, "head_dim": 256, "hidden_act": "gelu",
        "hidden_activation": None, "hidden_size": 2048, "intermediate_size": 16384, "max_position_embeddings": 8192,
        "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 256000,
    },
}  # fmt: skip


@pytest.mark.parametrize("size", RELEASED)
def test_configs_as_they_were_released_are_read(size: str) -> None:
    read = gemma_config(RELEASED[size])
    rows = {"gemma3_4b": 262_208, "gemma3_1b": 262_144}.get(size, 256_000)
    assert read == dataclasses.replace(SIZES[size], vocab_size=rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type=llama"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"hidden_activation": "silu"}, "hidden_activation=silu"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 8.0}}}, "rope_type=yarn"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}}, "linear on local"),
        ({"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 8.0}}, "rope_type=yarn"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, "lacks 'factor'"),
        ({"rope_parameters": []}, "wrong kind"),
        ({"head_dim": "16"}, "'16' for what is head_dim"),
        ({"num_hidden_layers": 0, "layer_types": []}, "0 for what is num_layers"),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
    ],
)
def test_a_model_that_is_not_computed_here_is_refused(change: dict, message: str) -> None:
    content = {**hf_config(SIZES["gemma3_1b"], 262_144), **change}
    content = {name: value for name, value in content.items() if value is not ...}
    with pytest.raises(ConfigError, match=message):
        gemma_config(content)


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_out_and_in_is_bit_equal(generation: int, tokenizer: Path, here: Path) -> None:
    config, weights = export(generation, tokenizer, here / "export")
    found = imported(here / "export", "back")
    assert found.state["model"] == json.loads(json.dumps(dataclasses.asdict(config)))
    pieces = Tokenizer.load(tokenizer).vocab_size
    for name, weight in weights.items():
        back = checkpoint.read_tensor(found, f"model.{name}")
        used = slice(pieces if name == "embedding.weight" else None)
        assert torch.equal(back[used], weight[used]), name
        assert back.shape == weight.shape
        assert not back[pieces:].any() or name != "embedding.weight"
    assert Path("runs/back/tokenizer.model").read_bytes() == tokenizer.read_bytes()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_in_and_out_is_bit_equal(dtype: str, tokenizer: Path, here: Path) -> None:
    """Every file of the model but our own note of where it came from."""
    export(3, tokenizer, here / "export", dtype)
    imported(here / "export", "between")
    assert main("export", ["run=between", f"export.dtype={dtype}", "export.output=again"]) == DONE
    names = sorted(path.name for path in (here / "export").iterdir())
    assert names == sorted(path.name for path in (here / "again").iterdir())
    for name in sorted(set(names) - {"gemcutter.json"}):
        assert (here / "export" / name).read_bytes() == (here / "again" / name).read_bytes(), name


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_what_transformers_saves_is_read(generation: int, tokenizer: Path, here: Path) -> None:
    """Its own model, saved by itself in several files, gives its logits here."""
    from transformers import AutoModelForCausalLM

    export(generation, tokenizer, here / "export")
    theirs = AutoModelForCausalLM.from_pretrained(here / "export", attn_implementation="eager")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.5)
    theirs.save_pretrained(here / "theirs", max_shard_size="50KB")
    assert len(list((here / "theirs").glob("*.safetensors"))) > 1
    portable = open_hf(here / "theirs")
    assert portable.tokenizer is None
    ours = Gemma(portable.config)
    ours.load_state_dict(dict(portable.weights))
    tokens = torch.randint(1, portable.config.vocab_size, (2, 31), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = ours(tokens, torch.ones_like(tokens), torch.arange(31).expand(2, -1))
        expected = theirs(tokens).logits
    assert (logits - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("head", ["language_model.model.", "model.language_model."])
def test_the_text_of_a_gemma_with_images_is_read(head: str, tokenizer: Path, here: Path) -> None:
    _, weights = export(3, tokenizer, here / "export")
    stored = load_file(here / "export/model.safetensors")
    moved = {head + name.removeprefix("model."): tensor for name, tensor in stored.items()}
    images = {head.split("language_model")[0] + "vision_tower.vision_model.post_layernorm.bias": torch.zeros(3)}
    save_file(moved | images, here / "export/model.safetensors")
    text = json.loads((here / "export/config.json").read_text())
    (here / "export/config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    portable = open_hf(here / "export")
    assert torch.equal(
        portable.weights["blocks.6.attention.k_norm.weight"], weights["blocks.6.attention.k_norm.weight"]
    )


def test_gemma3_with_images_as_transformers_saves_it_is_read(tokenizer: Path, here: Path) -> None:
    import transformers

    config = config_of(3, Tokenizer.load(tokenizer).vocab_size)
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    both = transformers.Gemma3Config(
        text_config=hf_config(config, config.vocab_size), vision_config=vision, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(both)
    theirs.save_pretrained(here / "both")
    portable = open_hf(here / "both")
    assert portable.config == config
    assert torch.equal(portable.weights["embedding.weight"], theirs.get_input_embeddings().weight)
    assert set(portable.weights) == {name for name, _ in Gemma(config).named_parameters()}


def test_a_run_begins_with_imported_weights(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first loss is that of the weights, and the run is told apart from one that begins at random."""
    random = lab.train("random", "steps=3")
    lab.train("first", "steps=12", "optim.schedule=constant")
    monkeypatch.chdir(lab.folder)
    assert main("export", ["run=first", "export.output=out"]) == DONE
    found = imported(lab.folder / "out", "in")
    run = lab.train("second", "steps=3", "init_from=in")
    trained = lab.run("first").column("loss")
    assert run.column("loss")[0] < random.column("loss")[0] - 0.5
    assert abs(run.column("loss")[0] - trained[-1]) < 0.3
    state = checkpoint.find(run.folder / "checkpoints").state
    assert state["origin"]["init_sha256"] == found.sha256
    assert state["identity"]["init_from"] == "in"
    shutil.rmtree(lab.folder / "runs/in")  # a resume does not need it any more
    again = lab.train("second", "steps=5", "init_from=in")
    assert again.column("loss")[:3] == run.column("loss")[:3]
    assert checkpoint.find(run.folder / "checkpoints").state["origin"]["init_sha256"] == found.sha256
    other = lab.end("second", "steps=6")
    assert other.code == CONFIG
    assert "init_from: 'in' there, None here" in other.said


def test_a_run_begins_with_its_own_kind_of_checkpoint_bit_for_bit(lab) -> None:
    """The weights of the first checkpoint of a run of one step without a learning rate are those it began with."""
    first = lab.train("first", "steps=5")
    second = lab.train("second", "steps=1", "init_from=first", "optim.peak_lr=1e-30", "optim.weight_decay=0")
    was, now = first.tensors(), second.tensors()
    for name in was:
        if name.startswith("model."):
            assert torch.equal(was[name], now[name]), name


def test_a_run_does_not_begin_with_another_model_or_tokenizer(lab, other_corpus) -> None:
    lab.train("first", "steps=1")
    running = lab.end("second", "init_from=first", "model.num_layers=3", "model.window=16")
    assert running.code == CONFIG
    assert "num_layers: 2 there, 3 here" in running.said
    assert "window: 32 there, 16 here" in running.said
    running = lab.end("third", "init_from=first", *other_corpus.overrides)
    assert running.code == CONFIG
    assert "was trained with the tokenizer" in running.said
    running = lab.end("fourth", "init_from=nowhere")
    assert running.code == DATA
    assert "set init_from=<run id or run directory>; runs here: first" in running.said
    assert not (lab.folder / "runs/second").exists()


def test_a_run_that_has_no_checkpoint_yet_does_not_change_what_it_began_with(lab) -> None:
    lab.train("first", "steps=1", "checkpoint.every=1")
    (lab.folder / "runs/second").mkdir(parents=True)
    event = {"time": 0.0, "attempt": 1, "event": "init", "checkpoint_sha256": "ab" * 32}
    (lab.folder / "runs/second/events.jsonl").write_text(json.dumps(event) + "\n")
    running = lab.end("second", "steps=1", "init_from=first")
    assert running.code == CONFIG
    assert "began with other weights" in running.said


def test_released_rows_are_restored(tmp_path: Path) -> None:
    """Of 256,000 or 262,208 stored rows become the 256,128 and 262,144 of the released sizes."""
    from trainer.export.import_job import rows

    at = Path("tokenizer.model")
    assert rows(dataclasses.replace(SIZES["gemma_2b"], vocab_size=256_000), 256_000, at) == 256_128
    assert rows(SIZES["gemma2_9b"], 256_000, at) == 256_128
    assert rows(dataclasses.replace(SIZES["gemma3_4b"], vocab_size=262_208), 262_144, at) == 262_144
    other = dataclasses.replace(SIZES["gemma3_4b"], d_ff=99, vocab_size=700)
    assert rows(other, 700, at) == 768


def test_a_tokenizer_of_another_vocabulary_is_refused(tokenizer: Path, here: Path, capsys) -> None:
    export(1, tokenizer, here / "export")
    config = json.loads((here / "export/config.json").read_text())
    stored = load_file(here / "export/model.safetensors")
    for rows in (300, 700):
        stored["model.embed_tokens.weight"] = torch.zeros(rows, 32)
        save_file(stored, here / "export/model.safetensors")
        (here / "export/config.json").write_text(json.dumps(config | {"vocab_size": rows}))
        assert main("import", ["pretrained.folder=export", "backend=cpu"]) == CONFIG
        assert (
            f"{rows} embedding rows and the tokenizer export/tokenizer.model has 512 pieces" in capsys.readouterr().err
        )
    (here / "export/config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    assert main("import", ["pretrained.folder=export", "backend=cpu"]) == DATA
    assert "700 embedding rows, and its config.json says vocab_size=512" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_folder_without_a_tokenizer_needs_one_named(tokenizer: Path, here: Path, capsys) -> None:
    export(1, tokenizer, here / "export")
    (here / "export/tokenizer.model").unlink()
    assert main("import", ["pretrained.folder=export", "backend=cpu"]) == CONFIG
    assert "set tokenizer.model to the SentencePiece model" in capsys.readouterr().err
    imported(here / "export", "named", f"tokenizer.model={tokenizer}")
    assert Path("runs/named/tokenizer.model").read_bytes() == tokenizer.read_bytes()


def test_pickles_and_broken_files_are_refused(tokenizer: Path, here: Path) -> None:
    export(1, tokenizer, here / "export")
    weights = here / "export/model.safetensors"
    stored = load_file(weights)
    save_file(stored | {"model.rotary.inv_freq": torch.zeros(2)}, weights)
    with pytest.raises(DataError, match=r"1 unknown \['model.rotary.inv_freq'\]"):
        open_hf(here / "export")
    save_file({name: tensor for name, tensor in stored.items() if name != "model.norm.weight"}, weights)
    with pytest.raises(DataError, match=r"1 missing \['model.norm.weight'\]"):
        open_hf(here / "export")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"] + 1}, weights)
    with pytest.raises(ConfigError, match="not its embedding"):
        open_hf(here / "export")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, weights)
    open_hf(here / "export")
    index = here / "export/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(DataError, match="no files of its own folder"):
        open_hf(here / "export")
    index.unlink()
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="no safetensors file"):
        open_hf(here / "export")
    weights.unlink()
    (here / "export/pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(DataError, match=r"pytorch_model.bin may run code when it is read"):
        open_hf(here / "export")


def test_an_import_is_made_once_and_never_over_another(tokenizer: Path, here: Path, capsys) -> None:
    export(1, tokenizer, here / "one")
    export(2, tokenizer, here / "two")
    first = imported(here / "one", "kept")
    assert imported(here / "one", "kept").sha256 == first.sha256
    job = compose("import", ["pretrained.folder=two", "run_id=kept", "backend=cpu"])
    assert job.pretrained.format == "hf"
    assert main("import", ["pretrained.folder=two", "run_id=kept", "backend=cpu"]) == CONFIG
    assert "runs/kept holds something else than two" in capsys.readouterr().err
    assert main("import", ["backend=cpu"]) == CONFIG
    assert "pretrained.folder= is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["jax", "keras"])
def test_without_its_library_a_format_says_what_to_install(library, tokenizer: Path, here: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)  # as where it is not installed
    export(1, tokenizer, here / "hf")
    imported(here / "hf", "one")
    assert main("export", ["run=one", f"export.format={library}", "export.output=out"]) == CONFIG
    assert f"install gemcutter[{library}]" in capsys.readouterr().err
    assert not (here / "out").exists()

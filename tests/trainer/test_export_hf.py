"""An export loads in transformers with equal logits, and its tokenizer gives the ids the model was trained on."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from conf.exits import ConfigError, DataError
from conf.schema import Model
from data_pipeline.tokenizer import Tokenizer, pieces, train
from trainer.export import export_hf
from trainer.export import hf as hf_module
from trainer.model import Gemma, GemmaConfig, build_config

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PROVENANCE = {"run": "dev-0123abcd", "step": 7, "checkpoint": "ab" * 32, "config": "cd" * 32}
SIZES = {1: "gemma_2b", 2: "gemma2_2b", 3: "gemma3_4b"}


def sentences() -> list[str]:
    """Prose, code, digits and two other scripts, made of a small invented vocabulary."""
    chance = random.Random(0)
    vocabulary = (
        "the river carries a small boat past seven old mills while children count lanterns under grey bridges "
        "baker baking bakes unbaked 1907 3.14 return value lambda if else for in range print Müller façade naïve "
        "река лодка мост фонарь 川 小舟 橋 灯 don't it's co-operate aaaa abab ababab"
    )
    words = vocabulary.split()
    lines = [" ".join(chance.choices(words, k=chance.randint(3, 14))) for _ in range(900)]
    return ["\n".join(lines[i : i + 9]) + "\n\n    return  x\n\t\tend" for i in range(0, 900, 9)]


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(sentences(), 700))
    return path


def config_of(generation: int, pieces_count: int, **changes) -> GemmaConfig:
    shape = {"num_layers": 7, "d_model": 32, "d_ff": 56, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    shape |= {"vocab_size": 768} | ({"window": 10} if generation > 1 else {})
    return build_config(Model(size=SIZES[generation], **(shape | changes)), pieces_count)


def random_weights(config: GemmaConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return {
            name: torch.randn(parameter.shape, generator=generator) * 0.3
            for name, parameter in Gemma(config).named_parameters()
        }


def export(generation: int, tokenizer_model: Path, folder: Path, dtype: str = "fp32", **changes):
    vocab_size = Tokenizer.load(tokenizer_model).vocab_size
    config = config_of(generation, vocab_size)
    weights = random_weights(config) | changes
    export_hf(config, weights, tokenizer_model, vocab_size, folder, dtype, PROVENANCE)
    return config, weights, vocab_size


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_transformers_loads_the_export_with_equal_logits(
    generation: int, tokenizer_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    config, weights, vocab_size = export(generation, tokenizer_model, tmp_path / "export")
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "export", attn_implementation="eager", output_loading_info=True
    )
    expected_class = {1: "GemmaForCausalLM", 2: "Gemma2ForCausalLM", 3: "Gemma3ForCausalLM"}[generation]
    assert type(theirs).__name__ == expected_class
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.dtype == torch.float32
    assert torch.equal(theirs.get_input_embeddings().weight, weights["embedding.weight"][:vocab_size])
    ours = Gemma(config)
    ours.load_state_dict(weights)
    tokens = torch.randint(1, vocab_size, (2, 31), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = ours(tokens, torch.ones_like(tokens), torch.arange(31).expand(2, -1))[..., :vocab_size]
        expected = theirs(tokens).logits
    assert expected.shape == logits.shape
    assert (logits - expected).norm() <= 1e-5 * expected.norm()


def test_fp32_weights_are_bit_equal_and_bf16_weights_rounded_once(tokenizer_model: Path, tmp_path: Path) -> None:
    from trainer.export.hf_weights import hf_names

    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        config, weights, vocab_size = export(3, tokenizer_model, tmp_path / dtype, dtype)
        with safe_open(tmp_path / dtype / "model.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(hf_names(config).values())
            for ours, theirs in hf_names(config).items():
                whole = weights[ours][:vocab_size] if ours == "embedding.weight" else weights[ours]
                assert torch.equal(file.get_tensor(theirs), whole.to(kind))


def test_a_bf16_export_loads_as_bf16(tokenizer_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export(2, tokenizer_model, tmp_path / "export", "bf16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "export").dtype == torch.bfloat16


def test_large_exports_are_split_with_an_index(tokenizer_model: Path, tmp_path: Path, monkeypatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(hf_module, "MAX_FILE_BYTES", 100_000)
    _, weights, vocab_size = export(3, tokenizer_model, tmp_path / "export")
    index = json.loads((tmp_path / "export" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert all((tmp_path / "export" / file).stat().st_size < 110_000 for file in files)
    assert not (tmp_path / "export" / "model.safetensors").exists()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.equal(theirs.model.norm.weight, weights["final_norm.weight"])
    assert torch.equal(theirs.model.embed_tokens.weight, weights["embedding.weight"][:vocab_size])


@pytest.mark.parametrize("size", ["gemma_2b", "gemma2_27b", "gemma3_1b", "gemma3_27b"])
def test_config_json_states_the_released_shape(size: str) -> None:
    """Built by transformers from our file, on meta: the published number of parameters, with the tokenizer's rows."""
    import transformers

    from trainer.model import SIZES as TABLE
    from trainer.model import num_parameters

    config, rows = TABLE[size], 256_000
    content = hf_module.hf_config(config, rows)
    theirs_config = transformers.AutoConfig.for_model(**content)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(theirs_config)
    assert theirs.num_parameters() == num_parameters(config) - (config.vocab_size - rows) * config.d_model
    if size == "gemma3_27b":
        assert theirs_config.query_pre_attn_scalar == 168
        assert theirs_config.rope_parameters["full_attention"]["factor"] == 8.0
        assert theirs_config.layer_types[5] == "full_attention"
        assert theirs_config.layer_types[-1] == "sliding_attention"


@pytest.fixture(scope="module")
def both_tokenizers(tokenizer_model: Path, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("exported") / "export"
    export(3, tokenizer_model, folder)
    return Tokenizer.load(tokenizer_model), AutoTokenizer.from_pretrained(folder)


TEXTS = [
    "",
    " ",
    "a",
    "the river carries a boat",
    " leading and trailing ",
    "two  three   four    blanks" + " " * 40 + "end",
    "\n\n\n" + "\n" * 70 + "x\n \n  \n",
    "\t\tif x:\n\t\t\treturn\t1\r\n",
    "0123456789 3.14159 1907 ٣٤",
    "Müller naïve façade e\u0301 ½ ﬁ",
    "река лодка 川小舟 emoji 👩‍👩‍👧 🇫🇷 \u200b\u00a0\ufeff",
    "<bos><eos><pad><unk><mask> <0x41> </s>",
    "▁▁ ▁ x▁y",
    "ababababab aaaaaaaaaaaaaaaaa bakerbaked",
    "\x01\x7f control",
    "don't co-operate, it's 100%!",
]


@pytest.mark.parametrize("text", TEXTS)
def test_transformers_tokenizes_as_training_did(both_tokenizers, text: str) -> None:
    ours, theirs = both_tokenizers
    assert theirs(text)["input_ids"] == [ours.bos, *ours.encode(text)]
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text(alphabet="ab \n\t1é", max_size=60),
        st.lists(
            st.sampled_from(["the", "river", "bak", "ing", " ", "  ", "\n", "ab", "a", "é", "川", "7"]), max_size=30
        ).map("".join),
    ).filter(lambda text: "\x00" not in text)
)
@example("aaaaabaaaab  aa")
@settings(deadline=None, max_examples=400)
def test_transformers_tokenizes_any_text_as_training_did(both_tokenizers, text: str) -> None:
    ours, theirs = both_tokenizers
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


def test_transformers_decodes_to_the_text(both_tokenizers) -> None:
    ours, theirs = both_tokenizers
    for text in [*sentences()[:5], "река 👩‍👩‍👧  x\n\n\ty ½"]:
        assert theirs.decode(ours.encode(text)) == text
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text


def test_special_tokens_are_known(both_tokenizers) -> None:
    ours, theirs = both_tokenizers
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id, theirs.unk_token_id) == (0, 1, 2, 3)
    assert len(theirs) == ours.vocab_size


def test_pieces_are_those_of_the_library(tokenizer_model: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_model)
    table = pieces(tokenizer_model)
    assert len(table) == tokenizer.vocab_size
    for index, (text, score, kind) in enumerate(table):
        assert text == tokenizer.processor.id_to_piece(index)
        assert score == tokenizer.processor.get_score(index)
        assert (kind == "byte") == tokenizer.processor.is_byte(index)
        assert (kind == "control") == tokenizer.processor.is_control(index)
    assert {table[4][2], table[5][2]} == {"user_defined"}


def test_equal_inputs_give_equal_bytes(tokenizer_model: Path, tmp_path: Path) -> None:
    export(1, tokenizer_model, tmp_path / "a")
    export(1, tokenizer_model, tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "config.json",
        "gemcutter.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_provenance_travels_with_the_weights(tokenizer_model: Path, tmp_path: Path) -> None:
    export(1, tokenizer_model, tmp_path / "export")
    content = json.loads((tmp_path / "export" / "gemcutter.json").read_text())
    assert content["format"] == 1
    assert content["provenance"] == PROVENANCE


def test_an_existing_folder_is_never_changed(tokenizer_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(1, tokenizer_model, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export(1, tokenizer_model, folder)  # the same again: nothing to do
    with pytest.raises(ConfigError, match=r"exists and holds something else.*set export.output"):
        export(2, tokenizer_model, folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_weights_of_another_model_are_refused(tokenizer_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 unknown \['blocks.9.extra'\]"):
        export(1, tokenizer_model, tmp_path / "export", **{"blocks.9.extra": torch.zeros(1)})
    with pytest.raises(DataError, match=r"final_norm.weight has the shape \(3,\), the configuration says \(32,\)"):
        export(1, tokenizer_model, tmp_path / "export", **{"final_norm.weight": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []

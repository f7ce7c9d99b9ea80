"""The table of released sizes, and overrides of a job."""

from __future__ import annotations

import pytest
import torch

from conf.exits import ConfigError
from conf.schema import Model
from trainer.export.hf import hf_config
from trainer.export.hf_weights import hf_names
from trainer.model import SIZES, Gemma, build_config, flops_per_token, num_parameters

# Embedding and other parameters, as the reports print them (arXiv 2403.08295 table 2, 2408.00118 table 2) and, for
# Gemma 3, from its public configurations.
PUBLISHED = {
    "gemma_2b": (524_550_144, 1_981_884_416),
    "gemma_7b": (786_825_216, 7_751_248_896),
    "gemma2_2b": (590_118_912, 2_024_517_888),
    "gemma2_9b": (917_962_752, 8_324_201_984),
    "gemma2_27b": (1_180_237_824, 26_047_480_320),
    "gemma3_270m": (167_772_160, 100_326_016),
    "gemma3_1b": (301_989_888, 697_896_064),
    "gemma3_4b": (671_088_640, 3_209_010_688),
    "gemma3_12b": (1_006_632_960, 10_759_155_456),
    "gemma3_27b": (1_409_286_144, 25_599_716_096),
}


# Rows and all parameters of the same models in transformers, which has a row per piece, and in the larger Gemma 3 some
# more for images. Vision towers not counted.
OF_TRANSFORMERS = {
    "gemma_2b": (256_000, 2_506_172_416),
    "gemma_7b": (256_000, 8_537_680_896),
    "gemma2_2b": (256_000, 2_614_341_888),
    "gemma2_9b": (256_000, 9_241_705_984),
    "gemma2_27b": (256_000, 27_227_128_320),
    "gemma3_270m": (262_144, 268_098_176),
    "gemma3_1b": (262_144, 999_885_952),
    "gemma3_4b": (262_208, 3_880_099_328 + 163_840),
    "gemma3_12b": (262_208, 11_765_788_416 + 245_760),
    "gemma3_27b": (262_208, 27_009_002_240 + 344_064),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str) -> None:
    config = build_config(Model(size=size), 256_000)
    assert config == SIZES[size]
    with torch.device("meta"):
        model = Gemma(config)
    embedding = model.embedding.weight.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (embedding, total - embedding) == PUBLISHED[size]
    assert num_parameters(config) == total


@pytest.mark.parametrize("size", OF_TRANSFORMERS)
def test_parameters_are_those_of_transformers_where_rows_are(size: str) -> None:
    """Counted in our module and in the one that transformers makes from our config.json."""
    import transformers

    rows, parameters = OF_TRANSFORMERS[size]
    config = build_config(Model(size=size, vocab_size=rows), 256_000)
    content = hf_config(config, rows)
    kind = {1: transformers.GemmaConfig, 2: transformers.Gemma2Config, 3: transformers.Gemma3TextConfig}
    with torch.device("meta"):
        ours = Gemma(config)
        theirs = transformers.AutoModelForCausalLM.from_config(kind[config.generation](**content))
    assert sum(parameter.numel() for parameter in ours.parameters()) == parameters
    assert sum(parameter.numel() for parameter in theirs.parameters()) == parameters
    shapes = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    names = hf_names(config)
    assert {names[name]: parameter.shape for name, parameter in ours.named_parameters()} == shapes


def test_the_table_holds_the_published_sizes_and_tiny() -> None:
    assert set(SIZES) == {*PUBLISHED, "tiny"}


def test_layer_patterns_are_cut_off_where_layers_end() -> None:
    assert SIZES["gemma_2b"].layer_kinds == ("global",) * 18
    assert SIZES["gemma2_2b"].layer_kinds == ("local", "global") * 13
    kinds = SIZES["gemma3_1b"].layer_kinds
    assert [i for i, kind in enumerate(kinds) if kind == "global"] == [5, 11, 17, 23]
    assert kinds[-1] == "local"


def test_the_27b_sizes_scale_queries_by_width_per_head() -> None:
    assert SIZES["gemma2_27b"].query_scale == 144**-0.5
    assert SIZES["gemma3_27b"].query_scale == 168**-0.5
    assert SIZES["gemma3_1b"].query_scale == 256**-0.5


def test_tiny_takes_its_rows_from_the_tokenizer() -> None:
    assert build_config(Model(), 4096).vocab_size == 4096
    assert build_config(Model(), 4097).vocab_size == 4224


def test_overrides_change_the_size() -> None:
    config = build_config(Model(size="gemma3_1b", num_layers=7, head_dim=64, vocab_size=512, window=32), 500)
    assert (config.num_layers, config.head_dim, config.vocab_size, config.window) == (7, 64, 512, 32)
    assert config.query_scale == 64**-0.5
    assert build_config(Model(size="gemma3_27b", d_model=3200), 500).query_scale == 100**-0.5


@pytest.mark.parametrize(
    ("model", "pieces", "message"),
    [
        (Model(size="gemma3_1B"), 100, r"model.size=gemma3_1B is not a known size: did you mean gemma3_1b\?"),
        (Model(size="llama"), 100, r"not a known size: Sizes: tiny, gemma_2b"),
        (Model(size="gemma_2b"), 262_144, r"262144 pieces but gemma_2b has 256128 embedding rows.*vocab_size=262144"),
        (Model(vocab_size=100), 4096, r"4096 pieces.*model.vocab_size=4096"),
        (Model(num_heads=4, num_kv_heads=3), 100, r"num_heads=4 is not a multiple of model.num_kv_heads=3"),
        (Model(d_model=250), 100, r"d_model=250 is not a multiple of model.num_heads=4"),
        (Model(head_dim=63), 100, r"head_dim=63 must be even"),
        (Model(num_layers=0, d_ff=-1), 100, r"num_layers=0 must be at least 1; model.d_ff=-1 must be at least 1"),
        (Model(num_kv_heads=0), 100, r"num_kv_heads=0 must be at least 1"),
        (Model(window=0), 100, r"window=0 must be at least 1"),
        (Model(size="gemma_2b", window=128), 100, r"window=128 has no effect: gemma_2b has no local layers"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(model: Model, pieces: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(model, pieces)


def test_flops_are_those_of_every_matrix_product() -> None:
    """Counted by torch over a forward and backward pass, with every key visible, against the closed form."""
    from torch.utils.flop_counter import FlopCounterMode

    config = build_config(Model(num_layers=1, window=None, d_model=32, d_ff=48, head_dim=8), 128)
    S = 16
    model = Gemma(config)
    rows = torch.ones(1, S, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(rows, rows, rows, rows).backward()
    matrices = config.num_heads * config.head_dim * 12  # attention, per visible key
    ours = flops_per_token(config, S) - matrices * (S + 1) / 2
    attention = sum(
        n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op) or "bmm" in str(op)
    )
    assert (counter.get_total_flops() - attention) / S == ours


def test_a_window_saves_attention_flops() -> None:
    config = build_config(Model(num_layers=2), 128)
    # window 128 in a row of 256: 128 queries see 1..128 keys, 128 see 128
    saved = 12 * config.num_heads * config.head_dim * 2 * ((256 + 1) / 2 - (128 * 129 / 2 + 128 * 128) / 256)
    unlimited = build_config(Model(num_layers=2, window=256), 128)
    assert flops_per_token(unlimited, 256) - flops_per_token(config, 256) == saved

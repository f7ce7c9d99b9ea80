"""The released sizes of Gemma 1, 2 and 3 (text), and how overrides of a job's `model.*` keys change one.

Widths, counts and windows are those of the reports (arXiv 2403.08295, 2408.00118, 2503.19786) and of the public
configurations linked per size. The reports print the feed-forward width of both GeGLU branches together; `d_ff` here is
one branch. Knows nothing of torch.
"""

from __future__ import annotations

import dataclasses
import difflib

from conf import schema
from conf.exits import ConfigError
from trainer.model.config import GemmaConfig

FROM_TOKENIZER = 0  # embedding rows of a size that has no vocabulary of its own
ROW_MULTIPLE = 128  # rows divide evenly over devices and vector units


def _gemma1(num_layers: int, d_model: int, d_ff: int, num_heads: int, num_kv_heads: int) -> GemmaConfig:
    return GemmaConfig(
        generation=1, vocab_size=256_128, num_layers=num_layers, d_model=d_model, d_ff=d_ff, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=256, pattern=("global",), window=None, query_pre_attention=256,
        max_positions=8192,
    )  # fmt: skip


def _gemma2(
    num_layers: int, d_model: int, d_ff: int, num_heads: int, num_kv_heads: int, head_dim: int, query_pre_attention: int
) -> GemmaConfig:
    return GemmaConfig(
        generation=2, vocab_size=256_128, num_layers=num_layers, d_model=d_model, d_ff=d_ff, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, pattern=("local", "global"), window=4096,
        query_pre_attention=query_pre_attention, max_positions=8192, attention_soft_cap=50.0, final_soft_cap=30.0,
        post_norms=True,
    )  # fmt: skip


def _gemma3(
    num_layers: int, d_model: int, d_ff: int, num_heads: int, num_kv_heads: int, head_dim: int,
    query_pre_attention: int, window: int, max_positions: int, rope_scale_global: float, vocab_size: int = 262_144,
) -> GemmaConfig:  # fmt: skip
    return GemmaConfig(
        generation=3, vocab_size=vocab_size, num_layers=num_layers, d_model=d_model, d_ff=d_ff, num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, pattern=("local",) * 5 + ("global",), window=window,
        query_pre_attention=query_pre_attention, max_positions=max_positions, qk_norm=True, post_norms=True,
        rope_base_global=1_000_000.0, rope_scale_global=rope_scale_global,
    )  # fmt: skip


SIZES: dict[str, GemmaConfig] = {
    # A Gemma 3 for a processor: trains in minutes, has every feature of the family.
    "tiny": _gemma3(6, 256, 1024, 4, 1, 64, 64, 128, 8192, 1.0, FROM_TOKENIZER),
    "gemma_2b": _gemma1(18, 2048, 16384, 8, 1),  # https://huggingface.co/google/gemma-2b
    "gemma_7b": _gemma1(28, 3072, 24576, 16, 16),  # https://huggingface.co/google/gemma-7b
    "gemma2_2b": _gemma2(26, 2304, 9216, 8, 4, 256, 256),  # https://huggingface.co/google/gemma-2-2b
    "gemma2_9b": _gemma2(42, 3584, 14336, 16, 8, 256, 256),  # https://huggingface.co/google/gemma-2-9b
    # The 27B sizes scale queries by width per head, 4608 / 32 and 5376 / 32, not by head_dim.
    "gemma2_27b": _gemma2(46, 4608, 36864, 32, 16, 128, 144),  # https://huggingface.co/google/gemma-2-27b
    "gemma3_270m": _gemma3(18, 640, 2048, 4, 1, 256, 256, 512, 32_768, 1.0),  # .../google/gemma-3-270m
    "gemma3_1b": _gemma3(26, 1152, 6912, 4, 1, 256, 256, 512, 32_768, 1.0),  # .../google/gemma-3-1b-pt
    "gemma3_4b": _gemma3(34, 2560, 10240, 8, 4, 256, 256, 1024, 131_072, 8.0),  # .../google/gemma-3-4b-pt
    "gemma3_12b": _gemma3(48, 3840, 15360, 16, 8, 256, 256, 1024, 131_072, 8.0),  # .../google/gemma-3-12b-pt
    "gemma3_27b": _gemma3(62, 5376, 21504, 32, 16, 128, 168, 1024, 131_072, 8.0),  # .../google/gemma-3-27b-pt
}


def build_config(model: schema.Model, vocab_size: int) -> GemmaConfig:
    """The model a job asks for: a size of the table with the job's overrides.

    Args:
        model: the keys `model.*`; null keeps the size's own value.
        vocab_size: pieces of the tokenizer. Rows beyond them exist in the embedding but are never a target.

    Raises:
        ConfigError: unknown size, a shape that cannot be built, or fewer embedding rows than pieces.
    """
    if model.size not in SIZES:
        near = difflib.get_close_matches(model.size, SIZES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"model.size={model.size} is not a known size: {hint}Sizes: {', '.join(SIZES)}")
    size = SIZES[model.size]
    asked = {
        item.name: getattr(model, item.name)
        for item in dataclasses.fields(model)
        if item.name != "size" and getattr(model, item.name) is not None
    }
    config = dataclasses.replace(size, **asked)
    if size.query_pre_attention == size.head_dim:
        config = dataclasses.replace(config, query_pre_attention=config.head_dim)
    else:
        config = dataclasses.replace(config, query_pre_attention=config.d_model // config.num_heads)
    if config.vocab_size == FROM_TOKENIZER:
        config = dataclasses.replace(config, vocab_size=-(-vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE)
    problems = _problems(config, model, vocab_size)
    if problems:
        raise ConfigError("; ".join(problems))
    return config


def _problems(config: GemmaConfig, model: schema.Model, vocab_size: int) -> list[str]:
    dimensions = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim")
    problems = [
        f"model.{name}={getattr(config, name)} must be at least 1" for name in dimensions if getattr(config, name) < 1
    ]
    if model.window is not None and "local" not in config.pattern:
        problems.append(f"model.window={model.window} has no effect: {model.size} has no local layers; leave it null")
    elif config.window is not None and config.window < 1:
        problems.append(f"model.window={config.window} must be at least 1")
    if problems:
        return problems  # the divisions below need them
    if config.num_heads % config.num_kv_heads:
        problems.append(
            f"model.num_heads={config.num_heads} is not a multiple of model.num_kv_heads={config.num_kv_heads}: "
            f"each key head serves as many query heads"
        )
    if config.d_model % config.num_heads:
        problems.append(
            f"model.d_model={config.d_model} is not a multiple of model.num_heads={config.num_heads}: "
            f"the public format of Gemma weights refuses such a model"
        )
    if config.head_dim % 2:
        problems.append(f"model.head_dim={config.head_dim} must be even: RoPE rotates pairs")
    if config.vocab_size < vocab_size:
        problems.append(
            f"the tokenizer has {vocab_size} pieces but {model.size} has {config.vocab_size} embedding rows "
            f"(model.vocab_size): use a smaller tokenizer or set model.vocab_size={-(-vocab_size // 128) * 128}"
        )
    return problems

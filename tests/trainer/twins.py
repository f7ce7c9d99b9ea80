"""A tiny Gemma of each generation beside transformers' model of the same weights: what parity is judged on.

The shapes keep what is odd about the released ones: head_dim is not d_model / num_heads, layers do not fill the
pattern, the window is shorter than half a row, key heads are one, shared or each head's own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.model import Gemma, GemmaConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
B, S = 2, 29

CONFIGS = {1: "GemmaConfig", 2: "Gemma2Config", 3: "Gemma3TextConfig"}
MODELS = {1: "GemmaForCausalLM", 2: "Gemma2ForCausalLM", 3: "Gemma3ForCausalLM"}


def config_of(generation: int, **changes: Any) -> GemmaConfig:
    shape = {
        "generation": generation,
        "vocab_size": 256,
        "d_model": 48,
        "d_ff": 80,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "query_pre_attention": 16,
        "max_positions": 8192,
    }
    by_generation: dict[int, dict[str, Any]] = {
        1: {"num_layers": 3, "num_kv_heads": 1, "pattern": ("global",), "window": None},
        2: {
            "num_layers": 5,
            "pattern": ("local", "global"),
            "window": 10,
            "attention_soft_cap": 50.0,
            "final_soft_cap": 30.0,
            "post_norms": True,
            "query_pre_attention": 12,
        },
        3: {
            "num_layers": 8,
            "pattern": ("local",) * 5 + ("global",),
            "window": 10,
            "post_norms": True,
            "qk_norm": True,
            "rope_base_global": 1_000_000.0,
            "rope_scale_global": 8.0,
            "query_pre_attention": 12,
        },
    }
    return GemmaConfig(**(shape | by_generation[generation] | changes))


# What differs among the released sizes, by the size that has it.
LIKE = {
    "gemma_2b": config_of(1),
    "gemma_7b": config_of(1, num_kv_heads=4),
    "gemma2_2b": config_of(2, query_pre_attention=16),
    "gemma2_27b": config_of(2),
    "gemma3_1b": config_of(3, num_kv_heads=1, query_pre_attention=16, rope_scale_global=1.0),
    "gemma3_27b": config_of(3, max_positions=131_072),
    # What no released size has, and a job may ask for.
    "gemma2 of one key head": config_of(2, num_kv_heads=1, num_layers=3),
    "gemma3 of unshared heads": config_of(3, num_kv_heads=4, num_layers=7),
}


@dataclass(frozen=True)
class Twins:
    """Both models, with equal weights."""

    ours: Gemma
    theirs: Any

    @property
    def config(self) -> GemmaConfig:
        return self.ours.config

    @property
    def names(self) -> dict[str, str]:
        from trainer.export.hf_weights import hf_names

        return hf_names(self.config)


def twins(config: GemmaConfig, std: float, words: int | None = None) -> Twins:
    """Random weights, norms included: zeros would hide a missing 1 + w.

    Args:
        std: of matrices. 1.0 saturates soft caps, which at 0.02 could be left out unseen.
        words: embedding rows of theirs, fewer than ours where ours are padded; None: as many.
    """
    import transformers  # here, as machines without it need the shapes above

    from trainer.export.hf_config import hf_config
    from trainer.export.hf_weights import hf_names

    words = words or config.vocab_size
    content = hf_config(config, words)
    content.pop("layer_types", None)  # theirs to know: from ours, an error would be in both models
    theirs_config = getattr(transformers, CONFIGS[config.generation])(**content)
    theirs_config._attn_implementation = "eager"
    theirs = getattr(transformers, MODELS[config.generation])(theirs_config).eval()
    ours = Gemma(config)
    generator = torch.Generator().manual_seed(7)
    their_parameters = dict(theirs.named_parameters())
    names = hf_names(config)
    assert set(names) == {name for name, _ in ours.named_parameters()}
    assert set(names.values()) == set(their_parameters)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.normal_(0.0, 0.5 if parameter.ndim == 1 else std, generator=generator)
            whole = parameter[:words] if name == "embedding.weight" else parameter
            their_parameters[names[name]].copy_(whole)
    return Twins(ours, theirs)


def writers(config: GemmaConfig, words: int) -> Twins:
    """Twins whose greedy text varies: a tied output repeats the last word unless blocks outweigh the embedding."""
    both = twins(config, 0.3, words)
    if config.post_norms:
        with torch.no_grad():
            both.ours.embedding.weight.mul_(0.05)
            both.theirs.get_input_embeddings().weight.mul_(0.05)
    both.theirs.generation_config.eos_token_id = None  # go on for as long as asked
    return both


def in_bf16(both: Twins) -> None:
    """Weights of both in bfloat16, in place.

    As loaded from a bfloat16 folder: `theirs.bfloat16()` would round the frequencies of their rotation, too.
    """
    for model in (both.ours, both.theirs):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()


def rows(words: int = 256, length: int = S) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens without padding, each row one document; segments; positions."""
    tokens_BS = torch.randint(1, words, (B, length), generator=torch.Generator().manual_seed(3))
    return tokens_BS, torch.ones(B, length, dtype=torch.int32), torch.arange(length).expand(B, length)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The distance over the length of theirs (L2)."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()

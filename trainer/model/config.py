"""What one Gemma is made of, as numbers. Knows nothing of torch, devices or configuration files.

Counts follow the reports: Gemma 1 arXiv 2403.08295 table 1 and 2, Gemma 2 arXiv 2408.00118 table 1 and 2, Gemma 3
arXiv 2503.19786 table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["local", "global"]


@dataclass(frozen=True)
class GemmaConfig:
    """One model: Gemma 1, 2 or 3, text only.

    pattern             kinds of attention, repeated over the layers and cut off where they end
    window              keys a query of a local layer sees, itself included
    query_pre_attention scores are divided by the root of this number
    *_soft_cap          cap * tanh(x / cap) on attention scores and on logits; None: no cap
    qk_norm             RMSNorm over head_dim of queries and keys, before RoPE
    post_norms          RMSNorm also after attention and feed-forward, before the residual sum
    rope_base_*         base of RoPE frequencies on layers of that kind
    rope_scale_global   positions are divided by this on global layers
    """

    generation: Literal[1, 2, 3]
    vocab_size: int
    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    pattern: tuple[Kind, ...]
    window: int | None
    query_pre_attention: int
    max_positions: int
    attention_soft_cap: float | None = None
    final_soft_cap: float | None = None
    qk_norm: bool = False
    post_norms: bool = False
    rope_base_local: float = 10_000.0
    rope_base_global: float = 10_000.0
    rope_scale_global: float = 1.0
    norm_eps: float = 1e-6

    @property
    def layer_kinds(self) -> tuple[Kind, ...]:
        """The kind of each layer, first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    @property
    def query_scale(self) -> float:
        """Factor on attention scores."""
        return self.query_pre_attention**-0.5


def num_parameters(config: GemmaConfig) -> int:
    """Parameters of the model; the embedding, tied to the output, counts once."""
    return config.vocab_size * config.d_model + num_non_embedding_parameters(config)


def num_non_embedding_parameters(config: GemmaConfig) -> int:
    """Parameters outside the embedding."""
    norms = (4 if config.post_norms else 2) * config.d_model + (2 * config.head_dim if config.qk_norm else 0)
    return config.num_layers * (_matrix_parameters_per_layer(config) + norms) + config.d_model


def flops_per_token(config: GemmaConfig, sequence_length: int) -> float:
    """Floating-point operations of matrix products to train on one token: forward, and twice that backward.

    Attention counts the keys that mask and window leave visible in a row of one document, on average; recomputation of
    activations counts nothing. The yardstick of model FLOPs utilisation (PaLM, arXiv 2204.02311 appendix B, which
    counts every key of the row).
    """
    matrices = config.num_layers * _matrix_parameters_per_layer(config) + config.vocab_size * config.d_model
    keys = sum(
        _mean_visible_keys(sequence_length, config.window if kind == "local" else None) for kind in config.layer_kinds
    )
    return 6 * matrices + 12 * config.num_heads * config.head_dim * keys


def tensor_problems(config: GemmaConfig, tensor: int) -> list[str]:
    """Why so many processes cannot share each block's matrices; empty where they can."""
    found = [
        f"model.{name}={getattr(config, name)} is not a multiple of mesh.tensor={tensor}"
        for name in ("num_heads", "d_ff")
        if getattr(config, name) % tensor
    ]
    if config.num_kv_heads % tensor and tensor % config.num_kv_heads:
        found.append(
            f"model.num_kv_heads={config.num_kv_heads} and mesh.tensor={tensor}: one must be a multiple of the other, "
            "so that each process has key heads of its own or reads one"
        )
    return found


def _matrix_parameters_per_layer(config: GemmaConfig) -> int:
    heads = 2 * config.num_heads + 2 * config.num_kv_heads  # queries and output; keys and values
    return heads * config.d_model * config.head_dim + 3 * config.d_model * config.d_ff


def _mean_visible_keys(sequence_length: int, window: int | None) -> float:
    reach = min(window or sequence_length, sequence_length)
    return (reach * (reach + 1) / 2 + (sequence_length - reach) * reach) / sequence_length

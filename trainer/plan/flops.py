"""Floating-point operations of matrix products: those the model asks for, and those that processes carry out."""

from __future__ import annotations

from trainer.model.config import GemmaConfig, Kind, flops_per_token
from trainer.plan.attention import computed_pairs, fused
from trainer.plan.layout import Layout


def model_flops(config: GemmaConfig, sequence_length: int, document: int) -> float:
    """To train on one row of documents of that many tokens, end to end and cut where the row ends.

    The yardstick of MFU: keys that document mask, causal mask and window hide cost nothing, nor does recomputation.
    """
    whole, rest = divmod(sequence_length, document)
    flops = whole * document * flops_per_token(config, document)
    return flops + (rest * flops_per_token(config, rest) if rest else 0)


def executed_flops(at: Layout) -> int:
    """Of one process for one micro-batch, forward, backward and again what `remat` does not keep.

    Attention is counted as its kernels work (`trainer.plan.attention`), and with scores formed again in the backward
    pass of the fused ones: flex and splash form them, and the gradient of shares, once for queries and once for keys.
    """
    return sum(_block(at, kind) for kind in at.config.layer_kinds) + _loss(at)


def _block(at: Layout, kind: Kind) -> int:
    products, attention = _products(at), _scores(at, kind)
    forward = products + 2 * attention
    backward = 2 * products + (7 if at.kernel in ("flex", "splash") else 5 if fused(at) else 4) * attention
    recomputed = RECOMPUTED_ON_XLA if at.device == "xla" else RECOMPUTED
    return forward + backward + recomputed[at.remat](at, kind)


def _products(at: Layout) -> int:
    """One pass through all matrices of a block."""
    c = at.config
    heads = 2 * at.query_heads + 2 * at.key_heads  # queries and output; keys and values
    return 2 * at.attended * c.d_model * (heads * c.head_dim + 3 * at.hidden)


def _scores(at: Layout, kind: Kind) -> int:
    """One of attention's products: queries with keys, or shares with values."""
    return 2 * computed_pairs(at, kind, at.document) * at.query_heads * at.config.head_dim


def _again(at: Layout, kind: Kind) -> int:
    """The forward pass up to the last thing that the backward pass needs."""
    # Without a norm behind it nobody needs what the last product puts out.
    unneeded = 0 if at.config.post_norms else 2 * at.attended * at.config.d_model * at.hidden
    return _products(at) + 2 * _scores(at, kind) - unneeded


def _attention_again(at: Layout, kind: Kind) -> int:
    """On XLA the loop over layers keeps what splash attention puts out, and nothing of the plain formula."""
    return 0 if at.kernel == "splash" else 2 * _scores(at, kind)


# By `remat`: what of a block's products is done twice.
RECOMPUTED = {"none": lambda at, kind: 0, "selective": lambda at, kind: 0, "block": _again}
RECOMPUTED_ON_XLA = {"none": _attention_again, "selective": _attention_again, "block": _again}


def _loss(at: Layout) -> int:
    """Products with the embedding: logits, and from their gradient those of the positions and of the embedding.

    On XLA logits are formed twice, and the words include those that fill the last shard of the embedding.
    """
    c = at.config
    if at.device != "xla":
        return 3 * 2 * at.positions * c.d_model * c.vocab_size
    shards = at.axes["tensor"] * at.axes["fsdp"]
    words = -(-c.vocab_size // shards) * at.axes["fsdp"]
    return 4 * 2 * at.attended * c.d_model * words

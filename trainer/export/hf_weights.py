"""What our parameters are called in Hugging Face's Gemma, Gemma 2 and Gemma 3. Layouts are equal; only names differ."""

from __future__ import annotations

from trainer.model.config import GemmaConfig

_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.q.weight": "self_attn.q_proj.weight",
    "attention.k.weight": "self_attn.k_proj.weight",
    "attention.v.weight": "self_attn.v_proj.weight",
    "attention.o.weight": "self_attn.o_proj.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
}
# Gemma 1 calls the norm before the feed-forward what Gemma 2 and 3 call the norm after attention.
_PRE_NORMS = {"feed_forward_norm.weight": "post_attention_layernorm.weight"}
_PRE_AND_POST_NORMS = {
    "attention_post_norm.weight": "post_attention_layernorm.weight",
    "feed_forward_norm.weight": "pre_feedforward_layernorm.weight",
    "feed_forward_post_norm.weight": "post_feedforward_layernorm.weight",
}
_QK_NORMS = {"attention.q_norm.weight": "self_attn.q_norm.weight", "attention.k_norm.weight": "self_attn.k_norm.weight"}


def hf_names(config: GemmaConfig) -> dict[str, str]:
    """Our name of every parameter of the model, in its order, to Hugging Face's; the tied output has no entry."""
    block = _BLOCK | (_PRE_AND_POST_NORMS if config.post_norms else _PRE_NORMS) | (_QK_NORMS if config.qk_norm else {})
    names = {"embedding.weight": "model.embed_tokens.weight"}
    for i in range(config.num_layers):
        names |= {f"blocks.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in block.items()}
    return names | {"final_norm.weight": "model.norm.weight"}

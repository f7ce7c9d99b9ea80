"""transformers: GemmaForCausalLM with its own loss, bfloat16 autocast over float32 weights, SDPA, fused AdamW.

It sees each row as one text, so that SDPA is causal without a mask; documents apart would need a mask of every row.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GemmaConfig, GemmaForCausalLM

from tests.bench.peers import training
from tests.bench.peers.training import Step, Variant, micro_batches, plain_step, run


def _start(compiled: bool, folder: Path) -> Step:
    config = GemmaConfig(
        vocab_size=training.VOCAB, hidden_size=training.D, intermediate_size=training.FF,
        num_hidden_layers=training.LAYERS, num_attention_heads=training.HEADS,
        num_key_value_heads=training.KV_HEADS, head_dim=training.HEAD_DIM, max_position_embeddings=8192,
        use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = GemmaForCausalLM(config).train()
    found = model.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    assert found.missing_keys == ["lm_head.weight"], found.missing_keys  # tied
    assert not found.unexpected_keys, found.unexpected_keys
    forward = torch.compile(model) if compiled else model

    def loss_of(tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        return forward(input_ids=tokens_BS, labels=targets_BS, shift_labels=targets_BS).loss

    return plain_step(model, loss_of, micro_batches(folder))


if __name__ == "__main__":
    what = "bf16 autocast, sdpa, loss by forward(labels), fused AdamW"
    run(
        {
            "compiled": Variant(partial(_start, True), f"{what}; torch.compile of the model with its loss"),
            "eager": Variant(partial(_start, False), what),
        }
    )

"""litgpt: its GPT as a Gemma with tied embeddings, its chunked cross entropy, bfloat16 autocast, fused AdamW.

`litgpt pretrain` does the same in Fabric: `bf16-mixed` is this autocast, and gives the loss float32 logits.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.utils import chunked_cross_entropy
from safetensors.torch import load_file
from torch import Tensor

from tests.bench.peers import training
from tests.bench.peers.training import Step, Variant, micro_batches, plain_step, run

_HEAD_ROWS = 128  # positions of a row whose logits are made together, as when litgpt finetunes


def _start(compiled: bool, head_rows: int, folder: Path) -> Step:
    config = Config.from_name(
        "Gemma-2b", n_embd=training.D, n_layer=training.LAYERS, n_head=training.HEADS,
        n_query_groups=training.KV_HEADS, head_size=training.HEAD_DIM, intermediate_size=training.FF,
        vocab_size=training.VOCAB, padded_vocab_size=training.VOCAB, block_size=training.S, norm_eps=1e-6,
    )  # fmt: skip
    model = GPT(config)
    weights: dict[str, Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(folder / "weights.safetensors"))
    model.load_state_dict(weights)
    model.transformer.wte.weight = model.lm_head.weight
    forward = torch.compile(model) if compiled else model

    def loss_of(tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        logits = forward(tokens_BS, lm_head_chunk_size=head_rows)
        logits = [part.float() for part in logits] if head_rows else logits.float()
        return chunked_cross_entropy(logits, targets_BS, ignore_index=training.IGNORED)

    return plain_step(model, loss_of, micro_batches(folder))


if __name__ == "__main__":
    what = "bf16 autocast, sdpa, chunked_cross_entropy, fused AdamW"
    head = f"logits of {_HEAD_ROWS} positions at a time"
    run(
        {
            "compiled": Variant(partial(_start, True, 0), f"{what}; torch.compile of the model"),
            "compiled-head": Variant(partial(_start, True, _HEAD_ROWS), f"{what}, {head}; torch.compile of the model"),
            "eager": Variant(partial(_start, False, 0), what),
            "eager-head": Variant(partial(_start, False, _HEAD_ROWS), f"{what}, {head}"),
        }
    )

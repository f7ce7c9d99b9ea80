"""Recomputation: which activations of a block are kept for the backward pass, and which are computed again there.

    none        all are kept
    selective   results of matrix products and of attention are kept; norms, rotations and sums are computed again
    block       only what enters the block is kept

A compiled block is one operation to this, so that `selective` is the compiler's to do. It never repeats matrix products
and attention; of the rest it keeps, unless told otherwise, what a product in the backward pass reads.

Knows blocks, but no FSDP and no loop.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch_config
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from trainer.model.document_attention import attend_documents

_aten = torch.ops.aten
_COSTLY = {
    _aten.mm.default,
    _aten.bmm.default,
    attend_documents._opoverload,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def recomputing(block: nn.Module, policy: str, compiled: bool) -> nn.Module:
    """The block, wrapped where necessary so that its backward pass computes again what `policy` does not keep."""
    if compiled:  # holds for all that this process compiles from now on
        functorch_config.ban_recompute_materialized_backward = policy != "selective"
    if policy == "none" or (policy == "selective" and compiled):
        return block
    if policy == "block":
        return checkpoint_wrapper(block)
    return checkpoint_wrapper(block, context_fn=functools.partial(create_selective_checkpoint_contexts, _selective))


def _selective(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE

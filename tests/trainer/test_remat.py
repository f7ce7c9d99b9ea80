"""What blocks keep for their backward pass, policy by policy."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trainer.backend.remat import recomputing
from trainer.model import SIZES, Gemma, init_weights


def kept_bytes(policy: str, compiled: bool) -> tuple[int, torch.Tensor]:
    """Of tensors that one block keeps beside its weights and inputs, and the gradient of the latter."""
    torch.compiler.reset()
    config = dataclasses.replace(SIZES["tiny"], num_layers=1)
    model = Gemma(config)
    init_weights(model, seed=0)
    block = model.blocks[0]
    if compiled:
        block.compile()
    block = recomputing(block, policy, compiled)
    segments_BS, positions_BS = torch.ones(2, 256, dtype=torch.int32), torch.arange(256).repeat(2, 1)
    around = model._surroundings(config.layer_kinds[0], segments_BS, positions_BS)
    generator = torch.Generator().manual_seed(0)
    x_BSD = torch.randn(2, 256, config.d_model, generator=generator).requires_grad_()
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), x_BSD)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out_BSD = block(x_BSD, around)
    out_BSD.square().sum().backward()
    assert x_BSD.grad is not None
    return sum(kept.values()), x_BSD.grad


@pytest.mark.parametrize("policy", ["selective", "block"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_computed_again_is_not_kept(policy: str, compiled: bool) -> None:
    everything, expected = kept_bytes("none", compiled)
    less, gradient = kept_bytes(policy, compiled)
    assert less < 0.8 * everything
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)

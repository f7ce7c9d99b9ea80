"""Tensor parallelism with sequence-parallel norms: the processes of one mesh axis share each block's matrices.

Between attention and feed-forward every process holds its share of the positions of a row, and norms and sums work on
that (Korthikanti et al., arXiv 2205.05198). Attention and feed-forward gather the positions, work on a share of the
heads or hidden units, and hand back sums of all shares, each process for its own positions. Weights of Megatron's two
kinds (Shoeybi et al., arXiv 1909.08053) are divided; every other weight is whole on each process, which sees only its
share of the work, so gradients of those are summed. Knows blocks, but no FSDP and no loop.

Shape suffixes: as in `trainer.model`, positions and heads as many as this process holds.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from trainer.backend.positions import gather, scatter_sum
from trainer.model import GemmaConfig
from trainer.model.config import tensor_problems as problems
from trainer.model.gemma import Block
from trainer.model.layers import RMSNorm

__all__ = ["problems", "share_block"]


def share_block(block: Block, config: GemmaConfig, mesh: DeviceMesh) -> None:
    """Divide a block made on `meta` over the processes of a one-dimensional mesh, in place."""
    attention, feed_forward = block.attention, block.feed_forward
    by_rows, by_columns = [attention.q, feed_forward.gate, feed_forward.up], [attention.o, feed_forward.down]
    if own_key_heads := config.num_kv_heads % mesh.size() == 0:
        by_rows += [attention.k, attention.v]
    for module in block.modules():
        if isinstance(module, (nn.Linear, RMSNorm)):
            divided = Shard(0) if module in by_rows else Shard(1) if module in by_columns else Replicate()
            _divide(module, divided, mesh)
            _compute_with_part(module)
    if not own_key_heads:
        head = mesh.get_local_rank() * config.num_kv_heads // mesh.size()  # the one that this process's queries read
        for module in (attention.k, attention.v):
            _compute_with_part(module, slice(head * config.head_dim, (head + 1) * config.head_dim))
    for shared in (attention, feed_forward):
        shared.register_forward_pre_hook(lambda _, inputs: (gather(inputs[0], mesh), *inputs[1:]))
        shared.register_forward_hook(lambda _, inputs, x_BSD: scatter_sum(x_BSD, mesh))


def _divide(module: nn.Linear | RMSNorm, placement: Placement, mesh: DeviceMesh) -> None:
    """Give a module its part of the weight, to be sharded further and saved as a part of the whole."""
    whole = module.weight.detach()
    local = whole
    if isinstance(placement, Shard):
        local = whole.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()].contiguous()
    part = DTensor.from_local(local, mesh, [placement], run_check=False, shape=whole.shape, stride=whole.stride())
    module.weight = nn.Parameter(part)


def _compute_with_part(module: nn.Linear | RMSNorm, rows: slice = slice(None)) -> None:
    """Let a module compute with (these rows of) what this process holds of its weight."""
    kind = type(module)

    def forward(x: Tensor) -> Tensor:
        weight = module.weight
        assert isinstance(weight, DTensor)
        # Each process computes with a whole weight for its own heads or positions only: gradients are parts of a sum.
        gradient = [Partial() if isinstance(placement, Replicate) else placement for placement in weight.placements]
        part = _Part(module, weight.to_local(grad_placements=gradient)[rows])
        return kind.forward(cast("Any", part), x)

    module.__dict__["forward"] = forward


class _Part:
    """A module as its own `forward` sees it, but for the weight."""

    def __init__(self, module: nn.Module, weight: Tensor) -> None:
        self._module, self.weight = module, weight

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

"""A Gemma spread over a mesh: the same model outside, a manual region over the chips inside.

Outside, parameters, their gradients, batches and the loss are whole tensors that the mesh cuts; the region between is
one differentiable operation.

Shape suffixes: B rows of all chips, S positions.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.backend.xla.feeders import ROWS
from trainer.backend.xla.layers import ScannedBlocks
from trainer.backend.xla.region import Mesh
from trainer.backend.xla.sharding import Placement, placements
from trainer.backend.xla.vocabulary import SharedEmbedding, shared_loss
from trainer.backend.xla.weights import Weights
from trainer.model import Gemma
from trainer.model.attention import Kernel


def spread(model: Gemma, weights: Weights, remat: str, kernel: Kernel) -> dict[str, Placement]:
    """Make a model on `meta` one of the mesh, in place; its parameters then have shapes of shards, and no memory.

    Returns where the numbers of each parameter lie. Raises ConfigError where a parameter has no rule.
    """
    config, mesh = model.config, weights.mesh
    shapes = [(name, tuple(p.shape)) for name, p in model.named_parameters() if not name.startswith("blocks.")]
    shapes += [(f"blocks.{name}", tuple(p.shape)) for name, p in model.blocks[0].named_parameters()]
    placed = placements(shapes, config, mesh.axes)
    model.kernel = kernel
    embedding = SharedEmbedding(placed["embedding.weight"], weights)
    model.embedding = embedding  # type: ignore[assignment]
    with torch.device("meta"):
        model.blocks = ScannedBlocks(config, placed, weights, remat)  # type: ignore[assignment]
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        stored = nn.Parameter(torch.empty(placed[name].stored, dtype=parameter.dtype, device="meta"))
        setattr(model.get_submodule(owner), last, stored)
    inside = copy.copy(model)  # the same modules, without the region around them
    inside.loss = functools.partial(_loss, embedding)
    model.__dict__["forward"] = _Region(inside, mesh, placed, weights).forward
    return placed


def _loss(embedding: SharedEmbedding, x_BSD: Tensor, _weight: Tensor, *rest: Any) -> Tensor:
    return shared_loss(embedding, x_BSD, *rest)


class _Region:
    """Enters the manual region with what a forward pass is given, and leaves it with the loss."""

    def __init__(self, inside: Gemma, mesh: Mesh, placed: dict[str, Placement], weights: Weights) -> None:
        self._inside, self._mesh, self._placed, self._weights = inside, mesh, placed, weights

    def forward(
        self,
        tokens_BS: Tensor,
        segments_BS: Tensor,
        positions_BS: Tensor,
        targets_BS: Tensor,
        weights_BS: Tensor,
        z_loss: float = 0.0,
    ) -> Tensor:
        """The summed loss, as `Gemma.forward`; logits are not to be had."""
        names, parameters = zip(*self._inside.named_parameters(), strict=True)
        batch = (tokens_BS, segments_BS, positions_BS, targets_BS, weights_BS)
        loss: Tensor = _Spread.apply(self, names, batch, z_loss, *parameters)
        return loss

    def run(
        self,
        names: tuple[str, ...],
        batch: tuple[Tensor, ...],
        z_loss: float,
        parameters: tuple[Tensor, ...],
        grad: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss, and the gradients of the parameters if they are wanted."""
        mesh, placed = self._mesh, self._placed
        rows = [mesh.enter(x, ROWS) for x in batch]
        shards = [mesh.enter(p, placed[name].spec) for name, p in zip(names, parameters, strict=True)]
        with torch.set_grad_enabled(grad):
            leaves = [shard.detach().requires_grad_(grad) for shard in shards]
            embedding, blocks = self._inside.embedding, self._inside.blocks
            assert isinstance(embedding, SharedEmbedding)
            assert isinstance(blocks, ScannedBlocks)
            if mesh.axes["tensor"] > 1:
                place = torch.arange(mesh.axes["tensor"], dtype=torch.int32, device=rows[0].device)
                embedding.first_word = mesh.enter(place * embedding.placement.part[0], ("tensor",)).squeeze(0)
                config = self._inside.config
                heads = place * config.num_kv_heads // mesh.axes["tensor"]
                blocks.first_key = mesh.enter(heads * config.head_dim, ("tensor",)).squeeze(0)
            given = {name: self._given(name, leaf) for name, leaf in zip(names, leaves, strict=True)}
            loss = functional_call(self._inside, given, tuple(rows), {"z_loss": z_loss})
            embedding.first_word = blocks.first_key = None
            gradients = list(torch.autograd.grad(loss, leaves)) if grad else []
        finished = [
            mesh.leave(self._finish(name, g), placed[name].spec) for name, g in zip(names, gradients, strict=False)
        ]
        return mesh.leave(loss.detach(), ()), finished

    def _given(self, name: str, leaf: Tensor) -> Tensor:
        """A weight that every chip has whole, in the compute dtype; blocks and embedding cast and gather their own."""
        placement = self._placed[name]
        whole = placement.layers is None and placement.cut.fsdp is None
        return leaf.to(self._weights.compute) if whole else leaf

    def _finish(self, name: str, gradient: Tensor) -> Tensor:
        if name.startswith("blocks."):
            return gradient  # its layers are finished together
        return self._weights.finish(gradient, self._placed[name])


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, region: _Region, names: tuple[str, ...], batch: tuple[Tensor, ...], z_loss: float, *parameters: Tensor
    ) -> Tensor:
        loss, gradients = region.run(names, batch, z_loss, parameters, any(ctx.needs_input_grad))
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(gradient * grad for gradient in ctx.saved_tensors)

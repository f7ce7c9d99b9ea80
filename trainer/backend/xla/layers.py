"""The blocks of a Gemma as one loop over periods of its layer pattern, forward and backward.

Of each layer the forward loop keeps what enters it and, by `remat`, results of its operations. The backward loop goes
through the layers of a period one by one: it gathers a layer's weights, computes the layer again as far as nothing was
kept of it, and sums the gradients over the chips that share the weights. So every weight is gathered twice a pass and
every gradient summed once, whatever the period.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_xla
from torch import Tensor
from torch.func import functional_call

from trainer.backend.xla.collectives import all_gather, all_reduce, gathered, reduce_scatter, scattered
from trainer.backend.xla.region import Mesh
from trainer.backend.xla.remat import Keeping, Recalling
from trainer.backend.xla.scan import scan
from trainer.backend.xla.sharding import Placement
from trainer.model import GemmaConfig
from trainer.model.attention import Surroundings
from trainer.model.config import Kind
from trainer.model.gemma import Block

Around = Callable[[Kind, Tensor, Tensor], Surroundings]  # (kind, segments, positions): what layers of a kind share


@dataclass(frozen=True, eq=False)
class Weights:
    """How a chip comes by whole weights and hands back their gradients.

    compute  dtype of weights in forward and backward passes
    reduce   dtype in which gradients are summed over chips
    """

    mesh: Mesh
    compute: torch.dtype
    reduce: torch.dtype

    def gather(self, shard: Tensor, placement: Placement) -> Tensor:
        """What the tensor axis leaves a chip of a weight, in the compute dtype: cast before it is gathered."""
        cast, dim = shard.to(self.compute), placement.cut.fsdp
        if dim is None:
            return cast
        return self.whole(cast, dim).narrow(dim, 0, placement.part[dim])

    def whole(self, shard: Tensor, dim: int) -> Tensor:
        """The shards of the fsdp axis put together, along one dimension of the torus after the other: see `scatter`."""
        for groups in reversed(self.mesh.lines("fsdp")):
            shard = all_gather(shard, dim, groups)
        return shard

    def sum(self, gradient: Tensor, placement: Placement) -> Tensor:
        """The chip's shard of a gradient, summed over the chips that gathered the weight."""
        cast, dim = gradient.to(self.reduce), placement.cut.fsdp
        if dim is None:
            return cast
        missing = placement.shard[dim] * placement.fsdp - placement.part[dim]
        if missing:
            shape = list(cast.shape)
            shape[dim] = missing
            cast = torch.cat([cast, cast.new_zeros(shape)], dim)
        return self.scatter(cast, dim)

    def scatter(self, x: Tensor, dim: int) -> Tensor:
        """A chip's shard of the sum of x over the fsdp axis, along one dimension of the torus after the other.

        The same bytes as in one step; but in one step over a square of chips, libtpu sums everything on every chip and
        then throws most of it away, which is twice as many.
        """
        for groups in self.mesh.lines("fsdp"):
            x = reduce_scatter(x, dim, groups)
        return x

    def finish(self, gradient: Tensor, placement: Placement) -> Tensor:
        """The sum over the chips that `sum` left out: those of other axes, which saw other rows, heads or positions."""
        axes: tuple[str, ...] = ("replica",)
        if placement.cut.fsdp is None:
            axes += ("fsdp",)
        if placement.cut.tensor is None:
            axes += ("tensor",)
        axes = tuple(axis for axis in axes if self.mesh.axes[axis] > 1)
        if not axes:
            return gradient
        return all_reduce(gradient.to(self.reduce), self.mesh.groups(axes)).to(gradient.dtype)


class ScannedBlocks(Block):
    """All blocks of a model; each parameter holds those of every layer, [L, ...], cut as `placements` says."""

    def __init__(self, config: GemmaConfig, placements: dict[str, Placement], weights: Weights, remat: str) -> None:
        super().__init__(config)
        self._layers = Layers(config, placements, weights, remat, shared_block(config, weights.mesh))

    def forward(  # type: ignore[override]
        self, x_BSD: Tensor, segments_BS: Tensor, positions_BS: Tensor, around: Around
    ) -> Tensor:
        """As `trainer.model.gemma.Blocks`, on what a chip holds."""
        names, shards = zip(*self.named_parameters(), strict=True)
        out: Tensor = _Through.apply(self._layers, around, names, x_BSD, segments_BS, positions_BS, *shards)
        return out


def shared_block(config: GemmaConfig, mesh: Mesh) -> Block:
    """A block without weights that takes and gives a chip's own positions, and works on its own heads.

    As `trainer.backend.tensor_parallel`: positions are gathered before attention and feed-forward, and sums scattered
    behind them (Korthikanti et al., arXiv 2205.05198).
    """
    with torch.device("meta"):
        block = Block(config)
    if mesh.axes["tensor"] > 1:
        groups = mesh.groups(("tensor",))
        for part in (block.attention, block.feed_forward):
            part.register_forward_pre_hook(lambda _, inputs: (gathered(inputs[0], 1, groups), *inputs[1:]))
            part.register_forward_hook(lambda _, inputs, x_BSD: scattered(x_BSD, 1, groups))
    return block


@dataclass(frozen=True, eq=False)
class Layers:
    """What does not change from pass to pass."""

    config: GemmaConfig
    placements: dict[str, Placement]
    weights: Weights
    remat: str
    block: Block

    @property
    def period(self) -> int:
        """Layers of a period of the pattern."""
        return min(len(self.config.pattern), self.config.num_layers)

    @property
    def periods(self) -> int:
        """Whole ones; the layers behind them are taken outside the loop."""
        return self.config.num_layers // self.period


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: Layers,
        around: Around,
        names: tuple[str, ...],
        x_BSD: Tensor,
        segments_BS: Tensor,
        positions_BS: Tensor,
        *shards: Tensor,
    ) -> Tensor:
        differentiated = any(ctx.needs_input_grad)
        placements = [layers.placements[f"blocks.{name}"] for name in names]

        def forward_layers(
            carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            (x,), kept = carry, []
            slices = list(slices)
            for n, kind in enumerate(layers.config.layer_kinds[: len(slices)]):
                if n + 1 < len(slices):  # the next layer's weights may be gathered from here on
                    x, *slices[n + 1] = _together([x, *slices[n + 1]])
                entered = x
                whole = _gathered(layers, slices[n], placements)
                with Keeping(layers.remat) as keeping:
                    x = _run(layers, around, names, kind, x, whole, constants)
                kept.append([entered, *keeping.results] if differentiated else [])
            return [x], kept

        constants = [segments_BS, positions_BS]
        loop = layers.period * layers.periods
        (x,), kept = scan(forward_layers, [x_BSD], shards, constants, layers.period, layers.periods)
        (x,), last = forward_layers(
            [x], [[s[n] for s in shards] for n in range(loop, layers.config.num_layers)], constants
        )
        ctx.layers, ctx.around, ctx.names, ctx.placements = layers, around, names, placements
        ctx.sizes = len(shards), len(kept)
        ctx.save_for_backward(*constants, *shards, *kept, *(t for one in last for t in one))
        return x

    @staticmethod
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor | None, ...]:
        layers, around, names, placements = ctx.layers, ctx.around, ctx.names, ctx.placements
        saved = list(ctx.saved_tensors)
        constants, saved = saved[:2], saved[2:]
        shards, saved = saved[: ctx.sizes[0]], saved[ctx.sizes[0] :]
        kept, last = saved[: ctx.sizes[1]], saved[ctx.sizes[1] :]
        of_layer = ctx.sizes[1]

        def backward_layers(
            carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            (grad,) = carry
            gradients: list[list[Tensor]] = [[] for _ in slices]
            mine, of_forward = [own[: len(shards)] for own in slices], [own[len(shards) :] for own in slices]
            for n, kind in reversed(list(enumerate(layers.config.layer_kinds[: len(slices)]))):
                # A layer is not computed again before its gradient is there. From here on the weights of the one before
                # it may be gathered; the gradients of the one before the last must have been summed by now.
                before, summed = mine[n - 1] if n else [], gradients[n + 2] if n + 2 < len(slices) else []
                tied = iter(_together([grad, *of_forward[n], *before, *summed]))
                grad, of_forward[n] = next(tied), [next(tied) for _ in of_forward[n]]
                if before:
                    mine[n - 1] = [next(tied) for _ in before]
                if summed:
                    gradients[n + 2] = list(tied)
                whole = [w.detach().requires_grad_() for w in _gathered(layers, mine[n], placements)]
                entered = of_forward[n][0].detach().requires_grad_()
                with torch.enable_grad(), Recalling(of_forward[n][1:]):
                    x = _run(layers, around, names, kind, entered, whole, constants)
                grad, *of_weights = torch.autograd.grad(x, [entered, *whole], grad)
                gradients[n] = [layers.weights.sum(g, p) for g, p in zip(of_weights, placements, strict=True)]
            return [grad], gradients

        loop = layers.period * layers.periods
        after = range(layers.config.num_layers - loop)
        slices = [[*(s[loop + n] for s in shards), *last[n * of_layer : (n + 1) * of_layer]] for n in after]
        (grad,), behind = backward_layers([grad_BSD], slices, constants)
        (grad,), gradients = scan(
            backward_layers, [grad], [*shards, *kept], constants, layers.period, layers.periods, reverse=True
        )
        if behind:
            gradients = [torch.cat([g, torch.stack([one[n] for one in behind])]) for n, g in enumerate(gradients)]
        finished = [layers.weights.finish(g, placement) for g, placement in zip(gradients, placements, strict=True)]
        return None, None, None, grad, None, None, *finished


def _gathered(layers: Layers, shards: Sequence[Tensor], placements: Sequence[Placement]) -> list[Tensor]:
    return [layers.weights.gather(shard, placement) for shard, placement in zip(shards, placements, strict=True)]


def _run(
    layers: Layers,
    around: Around,
    names: tuple[str, ...],
    kind: Kind,
    x_BSD: Tensor,
    whole: Sequence[Tensor],
    constants: Sequence[Tensor],
) -> Tensor:
    out: Tensor = functional_call(layers.block, dict(zip(names, whole, strict=True)), (x_BSD, around(kind, *constants)))
    return out


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """The same, none of which the compiler may use before all are there."""
    copies = [t.clone() for t in tensors]
    torch_xla._XLAC._xla_optimization_barrier_(copies)
    return copies

"""The blocks of a Gemma as one loop over periods of its layer pattern, forward and backward.

Of each layer the forward loop keeps what enters it and, by `remat`, results of its operations. The backward loop goes
through the layers of a period one by one: it gathers a layer's weights, computes the layer again as far as nothing was
kept of it, and sums the gradients over the chips that share the weights. So every weight is gathered twice a pass and
every gradient summed once, whatever the period.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_xla
from torch import Tensor
from torch.func import functional_call

from trainer.backend.xla.collectives import gathered, scattered
from trainer.backend.xla.region import Mesh
from trainer.backend.xla.remat import Keeping, Recalling
from trainer.backend.xla.scan import scan
from trainer.backend.xla.sharding import Placement
from trainer.backend.xla.weights import Weights
from trainer.model import GemmaConfig
from trainer.model.attention import Surroundings
from trainer.model.config import Kind
from trainer.model.gemma import Block

Around = Callable[[Kind, Tensor, Tensor], Surroundings]  # (kind, segments, positions): what layers of a kind share


class ScannedBlocks(Block):
    """All blocks of a model; each parameter holds those of every layer, [L, ...], cut as `placements` says."""

    def __init__(self, config: GemmaConfig, placements: dict[str, Placement], weights: Weights, remat: str) -> None:
        super().__init__(config)
        self._layers = Layers(config, placements, weights, remat, shared_block(config, weights.mesh))
        self.first_key: Tensor | None = None  # row of the key head that the chip reads of those it shares

    def forward(  # type: ignore[override]
        self, x_BSD: Tensor, segments_BS: Tensor, positions_BS: Tensor, around: Around
    ) -> Tensor:
        """As `trainer.model.gemma.Blocks`, on what a chip holds."""
        names, shards = zip(*self.named_parameters(), strict=True)
        constants = [segments_BS, positions_BS, *([] if self.first_key is None else [self.first_key])]
        out: Tensor = _Through.apply(self._layers, around, names, len(constants), x_BSD, *constants, *shards)
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
        number: int,
        x_BSD: Tensor,
        *others: Tensor,
    ) -> Tensor:
        constants, shards = list(others[:number]), list(others[number:])
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
                whole = _gathered(layers, slices[n], placements, constants)
                with Keeping(layers.remat) as keeping:
                    x = _run(layers, around, names, kind, x, whole, constants)
                kept.append([entered, *keeping.results] if differentiated else [])
            return [x], kept

        loop = layers.period * layers.periods
        (x,), kept = scan(forward_layers, [x_BSD], shards, constants, layers.period, layers.periods)
        (x,), last = forward_layers(
            [x], [[s[n] for s in shards] for n in range(loop, layers.config.num_layers)], constants
        )
        ctx.layers, ctx.around, ctx.names, ctx.placements = layers, around, names, placements
        ctx.sizes = len(constants), len(shards), len(kept)
        ctx.save_for_backward(*constants, *shards, *kept, *(t for one in last for t in one))
        return x

    @staticmethod
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor | None, ...]:
        layers, around, names, placements = ctx.layers, ctx.around, ctx.names, ctx.placements
        saved = list(ctx.saved_tensors)
        ends = list(itertools.accumulate(ctx.sizes))
        edges = zip([0, *ends], [*ends, None], strict=True)
        constants, shards, kept, last = (saved[first:end] for first, end in edges)
        of_layer = len(kept)

        def backward_layers(
            carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            (grad,) = carry
            key = _first_key(constants)
            gradients: list[list[Tensor]] = [[] for _ in slices]
            products: list[Tensor] = []  # gradients of the layer behind, not yet summed over chips
            mine, of_forward = [own[: len(shards)] for own in slices], [own[len(shards) :] for own in slices]
            for n, kind in reversed(list(enumerate(layers.config.layer_kinds[: len(slices)]))):
                # A layer is not computed again before all products of the one behind it are there. From here on those
                # may be summed, as those of the layer behind that are by now, and the weights of the layer in front
                # gathered.
                front, summed = mine[n - 1] if n else [], gradients[n + 2] if n + 2 < len(slices) else []
                lengths = [1, len(of_forward[n]), len(products), len(front), len(summed)]
                tied = iter(_together([grad, *of_forward[n], *products, *front, *summed]))
                (grad,), of_forward[n], products, front, summed = [list(itertools.islice(tied, k)) for k in lengths]
                if n:
                    mine[n - 1] = front
                if summed:
                    gradients[n + 2] = summed
                if products:
                    gradients[n + 1] = [
                        layers.weights.sum(g, p, key) for g, p in zip(products, placements, strict=True)
                    ]
                whole = [w.detach().requires_grad_() for w in _gathered(layers, mine[n], placements, constants)]
                entered = of_forward[n][0].detach().requires_grad_()
                with torch.enable_grad(), Recalling(of_forward[n][1:]):
                    x = _run(layers, around, names, kind, entered, whole, constants)
                grad, *products = torch.autograd.grad(x, [entered, *whole], grad)
            if products:
                gradients[0] = [layers.weights.sum(g, p, key) for g, p in zip(products, placements, strict=True)]
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
        return None, None, None, None, grad, *(None for _ in constants), *finished


def _first_key(constants: Sequence[Tensor]) -> Tensor | None:
    return constants[2] if len(constants) > 2 else None


def _gathered(
    layers: Layers, shards: Sequence[Tensor], placements: Sequence[Placement], constants: Sequence[Tensor]
) -> list[Tensor]:
    key = _first_key(constants)
    return [layers.weights.gather(shard, p, key) for shard, p in zip(shards, placements, strict=True)]


def _run(
    layers: Layers,
    around: Around,
    names: tuple[str, ...],
    kind: Kind,
    x_BSD: Tensor,
    whole: Sequence[Tensor],
    constants: Sequence[Tensor],
) -> Tensor:
    out: Tensor = functional_call(
        layers.block, dict(zip(names, whole, strict=True)), (x_BSD, around(kind, *constants[:2]))
    )
    return out


def _together(tensors: list[Tensor]) -> list[Tensor]:
    """The same, none of which the compiler may use before all are there."""
    copies = [t.clone() for t in tensors]
    torch_xla._XLAC._xla_optimization_barrier_(copies)
    return copies

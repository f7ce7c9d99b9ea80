"""Which axis of the mesh cuts which dimension of a parameter, by the parameter's name. Knows no torch_xla.

A block's parameters are stacked, [L, ...] for L layers, under the name they have without the layer's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from conf.exits import ConfigError
from trainer.model import GemmaConfig

Spec = tuple[str | tuple[str, ...] | None, ...]  # of each dimension the axis, or axes outermost first, that cut it


@dataclass(frozen=True)
class Cut:
    """How the parameters of one rule are cut.

    tensor  dimension that the tensor axis cuts, as Megatron does (arXiv 1909.08053); None: each of its chips has all
    fsdp    dimension that the fsdp axis cuts, within what the tensor axis leaves; None: each of its chips has all
    """

    tensor: int | None
    fsdp: int | None


RULES = (
    (r"embedding\.weight", Cut(tensor=0, fsdp=0)),
    (r"blocks\.attention\.(q|k|v)\.weight", Cut(tensor=0, fsdp=0)),
    (r"blocks\.attention\.o\.weight", Cut(tensor=1, fsdp=0)),
    (r"blocks\.feed_forward\.(gate|up)\.weight", Cut(tensor=0, fsdp=0)),
    (r"blocks\.feed_forward\.down\.weight", Cut(tensor=1, fsdp=0)),
    (r"blocks\..*norm\.weight", Cut(tensor=None, fsdp=None)),
    (r"final_norm\.weight", Cut(tensor=None, fsdp=None)),
)


KEYS = r"blocks\.attention\.(k|v)\.weight"


@dataclass(frozen=True)
class Placement:
    """Where the numbers of one parameter lie.

    shape   of a layer's parameter, or of one outside blocks
    layers  how many are stacked in front; None: it is none of a block
    cut     dimensions of `shape` that are cut
    tensor  chips of the tensor axis
    fsdp    chips of the fsdp axis
    read    rows, of those that the tensor axis leaves, that a chip computes with: those of one of several key heads
            that chips share; None: all
    """

    shape: tuple[int, ...]
    layers: int | None
    cut: Cut
    tensor: int
    fsdp: int
    read: int | None = None

    @property
    def part(self) -> tuple[int, ...]:
        """What the tensor axis leaves a chip of a layer, gathered over fsdp."""
        parts = self.tensor if self.cut.tensor is not None else 1
        return tuple(size // parts if dim == self.cut.tensor else size for dim, size in enumerate(self.shape))

    @property
    def shard(self) -> tuple[int, ...]:
        """What a chip holds of a layer: where fsdp does not divide a dimension, rows of zeros fill the last shards."""
        parts = self.fsdp if self.cut.fsdp is not None else 1
        return tuple(-(-size // parts) if dim == self.cut.fsdp else size for dim, size in enumerate(self.part))

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of all shards together, layers in front."""
        parts = [1] * len(self.shape)
        if self.cut.tensor is not None:
            parts[self.cut.tensor] *= self.tensor
        if self.cut.fsdp is not None:
            parts[self.cut.fsdp] *= self.fsdp
        whole = tuple(size * n for size, n in zip(self.shard, parts, strict=True))
        return whole if self.layers is None else (self.layers, *whole)

    @property
    def spec(self) -> Spec:
        """Of `stored`."""
        axes: list[tuple[str, ...]] = [() for _ in self.shape]
        if self.cut.tensor is not None:
            axes[self.cut.tensor] += ("tensor",)
        if self.cut.fsdp is not None:
            axes[self.cut.fsdp] += ("fsdp",)
        dims = tuple(one if len(one) > 1 else one[0] if one else None for one in axes)
        return dims if self.layers is None else (None, *dims)

    def box(self, tensor: int, fsdp: int) -> tuple[list[int], list[int]]:
        """Where in a layer the shard of the chip at these places of the two axes lies: offset and size of what is not
        filling."""
        offset, size = [0] * len(self.shape), list(self.part)
        if self.cut.fsdp is not None:
            first = min(fsdp * self.shard[self.cut.fsdp], self.part[self.cut.fsdp])
            last = min(first + self.shard[self.cut.fsdp], self.part[self.cut.fsdp])
            offset[self.cut.fsdp], size[self.cut.fsdp] = first, last - first
        if self.cut.tensor is not None:
            offset[self.cut.tensor] += tensor * self.part[self.cut.tensor]
        return offset, size


def placements(
    shapes: Iterable[tuple[str, tuple[int, ...]]], config: GemmaConfig, axes: dict[str, int]
) -> dict[str, Placement]:
    """The placement of each parameter, from names and shapes, those of blocks given once for all layers.

    Raises ConfigError where a parameter has no rule, or a rule no parameter: a new or renamed one must not end up whole
    on every chip, unnoticed.
    """
    found: dict[str, Placement] = {}
    used: set[str] = set()
    for name, shape in shapes:
        rule = next(((pattern, cut) for pattern, cut in RULES if re.fullmatch(pattern, name)), None)
        if rule is None:
            raise ConfigError(f"no rule in trainer/backend/xla/sharding.py says how {name} of shape {shape} is sharded")
        pattern, cut = rule
        used.add(pattern)
        read = None
        if config.num_kv_heads % axes["tensor"] and re.fullmatch(KEYS, name):  # several chips read one key head
            cut, read = Cut(tensor=None, fsdp=cut.fsdp), config.head_dim if config.num_kv_heads > 1 else None
        layers = config.num_layers if name.startswith("blocks.") else None
        found[name] = Placement(shape, layers, cut, axes["tensor"], axes["fsdp"], read)
    if unused := [pattern for pattern, _ in RULES if pattern not in used]:
        raise ConfigError(f"rules of trainer/backend/xla/sharding.py that match no parameter: {', '.join(unused)}")
    return found


def layer_names(name: str, layers: int) -> Iterator[str]:
    """The names that each layer's parameter has in a model and a checkpoint: blocks.0.attention.q.weight, ..."""
    for layer in range(layers):
        yield name.replace("blocks.", f"blocks.{layer}.", 1)

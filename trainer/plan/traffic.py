"""Bytes that processes exchange in a step, collective by collective, as `trainer.backend.native` has them.

Sums of single numbers (loss, counts) and of the gradients of norms are left out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from conf.schema import AXES
from trainer.plan.layout import MASTER, Layout
from trainer.plan.update import exchanged_numbers

SEGMENT = 4  # bytes of a segment id


@dataclass(frozen=True)
class Collective:
    """One kind of exchange between the processes of some axes.

    what     what is exchanged
    kind     all-gather, reduce-scatter, all-reduce or all-to-all
    axes     that the group spans; it lies within their product, neighbours next to each other
    bytes    of the whole: what is gathered, or what each process puts in to be summed; of an all-to-all what the first
             process takes in or hands out, whichever is more
    times    in a step
    exposed  whether computation waits for it; the others run beside it
    """

    what: str
    kind: str
    axes: tuple[str, ...]
    bytes: int
    times: int
    exposed: bool


def collectives(at: Layout, micro_batches: int = 1) -> list[Collective]:
    """Those of one process in a step of so many micro-batches; none within groups of one."""
    c, layers, again = at.config, at.config.num_layers, _forward_passes(at)
    stream = at.compute * at.attended * c.d_model
    keys = at.compute * at.keys * at.key_heads * c.head_dim
    # Key heads that the tensor axis cannot divide are whole on its processes, each of which does a part of the work.
    heads_shared = c.num_kv_heads % at.axes["tensor"] > 0
    shared = at.compute * c.num_kv_heads * c.head_dim * c.d_model if heads_shared else 0
    of_block, of_root = ("fsdp", "context"), ("fsdp", "context", "tensor")
    block, root = at.block_numbers(), at.root_numbers()
    # A block whose last norm is missing is not computed again to its end, where its sums are.
    sums = layers * (2 * again - (0 if c.post_norms or again == 1 else 1))
    found = [
        Collective("weights of blocks", "all-gather", of_block, at.compute * block, 2 * layers, False),
        Collective("gradients of blocks", "reduce-scatter", of_block, at.reduce * block, layers, False),
        Collective("embedding", "all-gather", of_root, at.compute * root, 1, True),
        Collective("gradient of the embedding", "reduce-scatter", of_root, at.reduce * root, 1, True),
        _replicas("gradients of blocks", at.reduce * block // at.block_shards, layers, exposed=False),
        _replicas("gradient of the embedding", at.reduce * root // at.root_shards, 1, exposed=True),
        Collective("positions", "all-gather", ("tensor",), stream, layers * 2 * again + layers * 2, True),
        Collective("sums of parts", "reduce-scatter", ("tensor",), stream, sums + layers * 2, True),
        Collective("gradients of shared key heads", "all-reduce", ("tensor",), shared, 2 * layers, True),
        Collective("keys and values", "all-gather", ("context",), keys, 2 * layers * again, True),
        Collective("gradients of keys and values", "reduce-scatter", ("context",), keys, 2 * layers, True),
        Collective("segments", "all-gather", ("context",), SEGMENT * at.keys, len(set(c.layer_kinds)), True),
    ]
    often = [dataclasses.replace(one, times=one.times * micro_batches) for one in found]
    return [one for one in (*often, *_of_update(at)) if size(at, one.axes) > 1 and one.bytes]


def _of_update(at: Layout) -> list[Collective]:
    """Parts of matrices to the process that makes one orthogonal, and parts of the result back."""
    if at.optimizer != "muon":
        return []
    there, back = (MASTER * numbers for numbers in exchanged_numbers(at))
    return [
        Collective("parts of matrices", "all-to-all", AXES, there, 1, True),
        Collective("parts of their updates", "all-to-all", AXES, back, 1, True),
    ]


def size(at: Layout, axes: tuple[str, ...]) -> int:
    """Processes of a group that spans these axes."""
    product = 1
    for axis in axes:
        product *= at.axes[axis]
    return product


def _replicas(what: str, numbers_bytes: int, times: int, *, exposed: bool) -> Collective:
    return Collective(what, "all-reduce", ("replica",), numbers_bytes, times, exposed)


def _forward_passes(at: Layout) -> int:
    """How often the collectives within a block's forward pass are done."""
    return 1 if at.remat == "none" else 2

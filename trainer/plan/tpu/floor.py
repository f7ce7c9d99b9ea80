"""The least that a chip receives in a step, given how the mesh shares the model: what compiled traffic is held against.

Weights are gathered once for the forward and once for the backward pass of a micro-batch, in the compute dtype, and
their gradients are scattered once, in the reduce dtype; the tied embedding counts as any other weight. Rings receive
(n - 1)/n of the whole. A program may fall below it, as the embedding can be kept from the forward to the backward pass.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction

from trainer.model.config import num_parameters
from trainer.plan.layout import Layout


@dataclass(frozen=True)
class Floor:
    """Bytes that one chip receives in a step.

    weights      gathers of parameters and scatters of their gradients, over the fsdp axis
    replicas     sum of a chip's own gradients over the replica axis, once a step
    activations  Megatron's all-reduces of a layer's stream over the tensor axis (arXiv 1909.08053): two forward, two
                 backward, and two again where a layer is computed again; a yardstick, and no strict minimum
    """

    weights: int
    replicas: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; 0 for one chip."""
        return sum(dataclasses.astuple(self))


def floor(at: Layout, micro_batches: int = 1) -> Floor:
    """That of a step of so many micro-batches."""
    fsdp, tensor, replicas = at.axes["fsdp"], at.axes["tensor"], at.axes["replica"]
    numbers = Fraction(num_parameters(at.config), tensor)
    stream = at.rows * at.sequence_length * at.config.d_model * at.compute
    reduces = (6 if at.remat == "block" else 4) * at.config.num_layers
    return Floor(
        weights=round(micro_batches * _lacking(fsdp) * numbers * (2 * at.compute + at.reduce)),
        replicas=round(2 * _lacking(replicas) * numbers / fsdp * at.reduce),
        activations=round(micro_batches * reduces * 2 * _lacking(tensor) * stream),
    )


def _lacking(members: int) -> Fraction:
    """Share of the whole that a member of a group does not have itself."""
    return Fraction(members - 1, members)

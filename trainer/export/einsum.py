"""Projections with an axis for heads, as JAX and Keras multiply them, from matrices with heads in a row, and back.

Shape suffixes: N heads (of queries, or of keys and values), D width, H head width, R = N * H.
"""

from __future__ import annotations

from torch import Tensor


def by_head(weight_RD: Tensor, head_dim: int) -> Tensor:
    """[N, D, H] of a projection into heads."""
    return weight_RD.unflatten(0, (-1, head_dim)).transpose(1, 2)


def from_heads(weight_NDH: Tensor) -> Tensor:
    """[N * H, D]: what `by_head` was given."""
    return weight_NDH.transpose(1, 2).flatten(0, 1)


def out_by_head(weight_DR: Tensor, head_dim: int) -> Tensor:
    """[N, H, D] of a projection out of heads."""
    return weight_DR.unflatten(1, (-1, head_dim)).permute(1, 2, 0)


def out_from_heads(weight_NHD: Tensor) -> Tensor:
    """[D, N * H]: what `out_by_head` was given."""
    return weight_NHD.permute(2, 0, 1).flatten(1, 2)

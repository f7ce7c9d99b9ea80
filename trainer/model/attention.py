"""Grouped-query attention over packed rows: causal, within a document, within a window, with an optional soft cap.

Knows no whole model and no device. What computes it is a `Kernel`, of which `trainer.model.kernels` has several.

Shape suffixes: B rows, S queries, T keys (as many as S where rows are whole), D width, N query heads, K key and value
heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from trainer.model.config import GemmaConfig
from trainer.model.layers import RMSNorm, rotate


class Rows(Protocol):
    """How rows lie over processes, or over passes that generate them one after the other.

    A pass may hold a run of positions only, and asks here for what all hold of them.
    """

    def first(self, positions: int) -> int | Tensor:
        """The place in the row of the first of so many that are held here."""

    def whole(self, x: Tensor) -> Tensor:
        """[B, T, ...] from what each process holds, [B, S, ...]; differentiable."""


class WholeRows:
    """Every position is held here."""

    def first(self, positions: int) -> int:
        """The first."""
        return 0

    def whole(self, x: Tensor) -> Tensor:
        """As it is."""
        return x


Attend = Callable[[Tensor, Tensor, Tensor, float | None, float], Tensor]
"""softmax(cap(q k * scale)) v over the keys that each query sees: (q_BSNH, k_BTKH, v_BTKH, cap, scale) -> [B, S, N, H].

Query head n reads key head n // (N / K); without a cap scores are as they are.
"""

Kernel = Callable[[Tensor, int | None, Rows], Attend]
"""(segments_BS, window, rows) -> an `Attend`: what depends on who sees whom only, done once for all layers of a kind.

A query sees keys that are not later, of its own segment, and fewer than `window` places back. Distance counts places in
the row, which within a segment is the distance of positions.
"""


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What all layers of one kind share in a forward pass, built once: who sees whom, and how positions rotate.

    An object rather than loose arguments because FSDP rounds every float tensor that it finds among a block's
    arguments to the compute dtype, and the angles must stay in float32.
    """

    rows: Rows
    attend: Attend
    cos_BS1P: Tensor
    sin_BS1P: Tensor


class Attention(nn.Module):
    """Projections, optional norms of queries and keys, rotation, attention, output projection."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.cap = config.attention_soft_cap
        self.scale = config.query_scale
        self.q = nn.Linear(config.d_model, config.num_heads * config.head_dim, bias=False)
        self.k = nn.Linear(config.d_model, config.num_kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(config.d_model, config.num_kv_heads * config.head_dim, bias=False)
        self.o = nn.Linear(config.num_heads * config.head_dim, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x_BSD: Tensor, around: Surroundings) -> Tensor:
        q_BSNH = self.q(x_BSD).unflatten(-1, (-1, self.head_dim))
        k_BSKH = self.k(x_BSD).unflatten(-1, (-1, self.head_dim))
        v_BSKH = self.v(x_BSD).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None and self.k_norm is not None:
            q_BSNH, k_BSKH = self.q_norm(q_BSNH), self.k_norm(k_BSKH)
        q_BSNH = rotate(q_BSNH, around.cos_BS1P, around.sin_BS1P)
        k_BSKH = rotate(k_BSKH, around.cos_BS1P, around.sin_BS1P)
        k_BTKH, v_BTKH = around.rows.whole(k_BSKH), around.rows.whole(v_BSKH)
        return self.o(around.attend(q_BSNH, k_BTKH, v_BTKH, self.cap, self.scale).flatten(2))

"""Grouped-query attention over packed rows: causal, within a document, within a window, with an optional soft cap.

Knows no whole model and no device. `attend` is the one place where a faster kernel can stand.

Shape suffixes: B rows, S queries, T keys (as many as S where rows are whole), D width, N query heads, K key and value
heads, G = N / K queries per key head, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.model.config import GemmaConfig
from trainer.model.layers import RMSNorm, rotate, soft_cap


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


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What all layers of one kind share in a forward pass, built once: who sees whom, and how positions rotate.

    An object rather than loose arguments because FSDP rounds every float tensor that it finds among a block's
    arguments to the compute dtype, and the angles must stay in float32.
    """

    rows: Rows
    visible_BST: Tensor
    cos_BS1P: Tensor
    sin_BS1P: Tensor


def visible(segments_BS: Tensor, window: int | None, rows: Rows = WholeRows()) -> Tensor:  # noqa: B008  # stateless
    """Which key each query sees, [B, S, T] bool: not later, of the same segment, fewer than `window` places back.

    Distance counts places in the row, which within a segment is the distance of positions. Every query sees itself,
    padding (segment 0) included, so no row of scores is empty.
    """
    segments_BT = rows.whole(segments_BS)
    index_T = torch.arange(segments_BT.shape[1], device=segments_BS.device)
    index_S = index_T[: segments_BS.shape[1]] + rows.first(segments_BS.shape[1])
    back_ST = index_S[:, None] - index_T[None, :]
    near_ST = back_ST >= 0
    if window is not None:
        near_ST = near_ST & (back_ST < window)
    return near_ST & (segments_BS[:, :, None] == segments_BT[:, None, :])


def attend(
    q_BSNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, visible_BST: Tensor, cap: float | None, scale: float
) -> Tensor:
    """softmax(cap(q k * scale)) v over the visible keys, [B, S, N, H]; query head n reads key head n // G."""
    if cap is not None:  # no fused kernel of torch knows the cap; leaving it out would be silently another model
        return attend_reference(q_BSNH, k_BTKH, v_BTKH, visible_BST, cap, scale)
    return attend_fused(q_BSNH, k_BTKH, v_BTKH, visible_BST, scale)


def attend_fused(q_BSNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, visible_BST: Tensor, scale: float) -> Tensor:
    """Torch's scaled dot-product attention: scores never reach memory where its fused kernels apply."""
    groups = q_BSNH.shape[2] // k_BTKH.shape[2]
    out_BNSH = F.scaled_dot_product_attention(
        q_BSNH.transpose(1, 2),
        _repeat_heads(k_BTKH, groups).transpose(1, 2),
        _repeat_heads(v_BTKH, groups).transpose(1, 2),
        attn_mask=visible_BST[:, None],
        scale=scale,
    )
    return out_BNSH.transpose(1, 2)


def attend_reference(
    q_BSNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, visible_BST: Tensor, cap: float | None, scale: float
) -> Tensor:
    """The plain formula: scores in float32, then scale, cap, mask, softmax in this order."""
    B, S, N, H = q_BSNH.shape
    K = k_BTKH.shape[2]
    q_BSKGH = q_BSNH.view(B, S, K, N // K, H)
    scores_BKGST = torch.einsum("bskgh,btkh->bkgst", q_BSKGH, k_BTKH).float() * scale
    if cap is not None:
        scores_BKGST = soft_cap(scores_BKGST, cap)
    scores_BKGST = scores_BKGST.masked_fill(~visible_BST[:, None, None], float("-inf"))
    shares_BKGST = scores_BKGST.softmax(dim=-1).to(v_BTKH.dtype)
    return torch.einsum("bkgst,btkh->bskgh", shares_BKGST, v_BTKH).reshape(B, S, N, H)


def _repeat_heads(x_BTKH: Tensor, groups: int) -> Tensor:
    """Each head `groups` times in place; a view when there is one head."""
    B, T, K, H = x_BTKH.shape
    return x_BTKH[:, :, :, None].expand(B, T, K, groups, H).reshape(B, T, K * groups, H)


class Attention(nn.Module):
    """Projections, optional norms of queries and keys, rotation, `attend`, output projection."""

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
        return self.o(attend(q_BSNH, k_BTKH, v_BTKH, around.visible_BST, self.cap, self.scale).flatten(2))

"""The small parts of a Gemma block: RMSNorm, the GeGLU feed-forward, rotary positions. Knows no whole model.

Every part computes in the dtype of the weights it meets, and where range or cancellation matters (means of squares,
angles) in float32 whatever they are: under FSDP all weights may arrive as bfloat16.

Shape suffixes: B rows, S positions, D width, F feed-forward width, N heads, H head width, P = H / 2 rotated pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + w) over the last dimension, in float32, rounded once at the end (arXiv 1910.07467).

    The weight is stored as the difference from 1, which keeps small values exact; the sum is formed in float32.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)


class FeedForward(nn.Module):
    """down(gelu(gate(x)) * up(x)) with the tanh form of GELU (GeGLU, arXiv 2002.05202)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        hidden_BSF = F.gelu(self.gate(x_BSD), approximate="tanh") * self.up(x_BSD)
        return self.down(hidden_BSF)


def rope_tables(positions_BS: Tensor, head_dim: int, base: float, scale: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, [B, S, 1, P] float32 (RoPE, arXiv 2104.09864).

    Pair p turns by position / scale / base^(2p / head_dim). Angles stay in float32: bfloat16 cannot tell positions
    beyond 256 apart. Recomputed from positions each time, so no table can go stale or be lost.
    """
    pairs_P = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BS.device)
    frequencies_P = 1.0 / (base ** (pairs_P / head_dim)) / scale
    angles_BS1P = positions_BS[:, :, None, None].float() * frequencies_P
    return angles_BS1P.cos(), angles_BS1P.sin()


def rotate(x_BSNH: Tensor, cos_BS1P: Tensor, sin_BS1P: Tensor) -> Tensor:
    """Rotates pair (p, p + P) of each head by its angle, in float32."""
    first, second = x_BSNH.float().chunk(2, dim=-1)
    turned = (first * cos_BS1P - second * sin_BS1P, second * cos_BS1P + first * sin_BS1P)
    return torch.cat(turned, dim=-1).to(x_BSNH.dtype)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): near the identity below the cap, never beyond it."""
    return torch.tanh(x / cap) * cap

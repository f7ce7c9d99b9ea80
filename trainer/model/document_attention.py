"""Attention of packed documents made of matrix products: for processors, where torch's fused kernel is slow.

Queries are taken in blocks, those of all heads that read one key head together, against the keys from the first that
one of the block's queries sees to the block's last: a product that is large enough for the processor's matrix units, a
softmax, which finds its result in the cache where rows are not long, and a product with the values. Nothing of that is
kept; the backward pass computes the shares again, as FlashAttention does (arXiv 2205.14135).

Blocks begin at fixed places of a row and not where documents do. Products then have few shapes, and oneDNN, which
makes a program for each and keeps a thousand of them, has them all after a step: with shapes that follow the documents
it took half of the time and, step by step, a gigabyte.

An operation of its own, so that compilation does not look inside: where documents begin is read on the host.

Shape suffixes: B rows, S positions, R = B * S, N query heads, K key heads, G = N / K queries per key head, H head
width; of a block P its positions, M = P * G and T its keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils.flop_counter import register_flop_formula

QUERIES = 128  # positions of a block: fewer make products small, more compute scores that no query sees


def first_keys(segments_BS: Tensor, window: int | None) -> Tensor:
    """The first place in its row that each position sees, [B, S]: that of its run of equal segments, or nearer."""
    index_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    begins_BS = torch.ones_like(segments_BS, dtype=torch.bool)
    begins_BS[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
    first_BS = torch.where(begins_BS, index_S, 0).cummax(dim=1).values
    return first_BS if window is None else first_BS.maximum(index_S - (window - 1))


@torch.library.custom_op("gemcutter::attend_documents", mutates_args=())
def attend_documents(
    q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, first_BS: Tensor, cap: float | None, scale: float
) -> Tensor:
    """softmax(cap(q k * scale)) v, [B, S, N, H], over the keys from `first_keys` to the query's own place.

    Of one dtype, to which scores are rounded once, as those of the plain formula are, and shares once more; cap and
    softmax are computed in float32.
    """
    q_KRGH, k_KRH, v_KRH = _grouped(q_BSNH, k_BSKH.shape[2]), _by_head(k_BSKH), _by_head(v_BSKH)
    out_KRGH = torch.empty_like(q_KRGH)
    for queries, keys, hidden_P1T in _blocks(first_BS):
        shares_KMT, _ = _shares(_rows(q_KRGH, queries), k_KRH[:, keys], q_KRGH.shape[2], hidden_P1T, cap, scale)
        torch.bmm(shares_KMT, v_KRH[:, keys], out=_rows(out_KRGH, queries))
    return _as(out_KRGH, q_BSNH)


@torch.library.custom_op("gemcutter::attend_documents_backward", mutates_args=())
def attend_documents_backward(
    grad_BSNH: Tensor,
    q_BSNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    first_BS: Tensor,
    cap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v; sums over blocks are formed in float32."""
    q_KRGH, k_KRH, v_KRH = _grouped(q_BSNH, k_BSKH.shape[2]), _by_head(k_BSKH), _by_head(v_BSKH)
    grad_KRGH = _grouped(grad_BSNH, k_BSKH.shape[2])
    grad_q_KRGH = torch.empty_like(q_KRGH)
    grad_k_KRH, grad_v_KRH = (torch.zeros_like(k_KRH, dtype=torch.float32) for _ in range(2))
    for queries, keys, hidden_P1T in _blocks(first_BS):
        q_KMH, k_KTH, grad_KMH = _rows(q_KRGH, queries), k_KRH[:, keys], _rows(grad_KRGH, queries)
        shares_KMT, tanh_KMT = _shares(q_KMH, k_KTH, q_KRGH.shape[2], hidden_P1T, cap, scale)
        grad_v_KRH[:, keys] += shares_KMT.mT @ grad_KMH
        grad_shares_KMT = grad_KMH @ v_KRH[:, keys].mT
        grad_KMT = torch._softmax_backward_data(grad_shares_KMT, shares_KMT, -1, shares_KMT.dtype)
        if tanh_KMT is not None:
            grad_KMT *= 1 - tanh_KMT.square()
        _product(grad_KMT, k_KTH, scale, out=_rows(grad_q_KRGH, queries))
        grad_k_KRH[:, keys] += _product(grad_KMT.mT, q_KMH, scale)
    return _as(grad_q_KRGH, q_BSNH), _as(grad_k_KRH, k_BSKH), _as(grad_v_KRH, v_BSKH)


def _blocks(first_BS: Tensor) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Queries, their keys, and which of these are hidden from which query besides those that are later, [P, 1, T].

    Places are those among all rows. Keys begin at a multiple of QUERIES in their row.
    """
    S = first_BS.shape[1]
    index_S = torch.arange(S, device=first_BS.device)
    for row, firsts in enumerate(first_BS.tolist()):
        for start in range(0, S, QUERIES):
            end, earliest = min(start + QUERIES, S), firsts[start] // QUERIES * QUERIES
            hidden_P1T = None
            if firsts[end - 1] > earliest:  # first keys only grow along a row
                hidden_P1T = index_S[earliest:end] < first_BS[row, start:end, None, None]
            yield slice(row * S + start, row * S + end), slice(row * S + earliest, row * S + end), hidden_P1T


def _shares(
    q_KMH: Tensor, k_KTH: Tensor, G: int, hidden_P1T: Tensor | None, cap: float | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    """What each query of a block takes of each key, [K, M, T], and where a cap bent the scores, the tanh that did."""
    if cap is None:
        tanh_KMT, scores_KMT = None, _product(q_KMH, k_KTH.mT, scale)
    else:
        tanh_KMT = _product(q_KMH, k_KTH.mT, scale / cap).float().tanh_()
        scores_KMT = tanh_KMT * cap
    P = q_KMH.shape[1] // G
    scores_KPGT = scores_KMT.unflatten(1, (P, G))
    scores_KPGT[..., -P:].masked_fill_(_later(P, q_KMH.device), -math.inf)  # the last query's place is the last key's
    if hidden_P1T is not None:
        scores_KPGT.masked_fill_(hidden_P1T, -math.inf)
    return scores_KMT.softmax(-1).to(q_KMH.dtype), tanh_KMT


@functools.lru_cache(QUERIES)
def _later(P: int, device: torch.device) -> Tensor:
    """[P, 1, P]: which of a block's last keys come after which of its queries."""
    return torch.ones(P, P, dtype=torch.bool, device=device).triu(1)[:, None]


def _product(left: Tensor, right: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """Of matrices, times a number, rounded once."""
    out = left.new_empty(*left.shape[:2], right.shape[2]) if out is None else out
    return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


def _by_head(x_BSKH: Tensor) -> Tensor:
    """[K, R, H], the positions of a head together in memory; a view of a single head."""
    return x_BSKH.flatten(0, 1).transpose(0, 1).contiguous()


def _grouped(x_BSNH: Tensor, K: int) -> Tensor:
    """[K, R, G, H], the queries of a key head together in memory."""
    return x_BSNH.flatten(0, 1).unflatten(1, (K, -1)).transpose(0, 1).contiguous()


def _as(x_KR: Tensor, like_BS: Tensor) -> Tensor:
    """The heads put back behind positions, in the shape and dtype of `like_BS` and without gaps in memory."""
    return x_KR.transpose(0, 1).to(like_BS.dtype).contiguous().view(like_BS.shape)


def _rows(x_KRGH: Tensor, block: slice) -> Tensor:
    """[K, M, H], a view."""
    return x_KRGH[:, block].flatten(1, 2)


@attend_documents.register_fake
def _(q_BSNH: Tensor, *_: Any) -> Tensor:
    return q_BSNH.new_empty(q_BSNH.shape)


@attend_documents_backward.register_fake
def _(_grad_BSNH: Tensor, q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q_BSNH.new_empty(q_BSNH.shape), k_BSKH.new_empty(k_BSKH.shape), v_BSKH.new_empty(v_BSKH.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.cap, ctx.scale = inputs[4:]


def _backward(ctx: Any, grad_BSNH: Tensor) -> tuple[Tensor | None, ...]:
    grads = attend_documents_backward(grad_BSNH, *ctx.saved_tensors, ctx.cap, ctx.scale)
    return *grads, None, None, None


def _pairs(first_BS: Tensor) -> int:
    """Of a query and a key, hidden or not, whose scores are computed; of a traced call those of rows without a mask."""
    if isinstance(first_BS, FakeTensor) or first_BS.is_meta:
        return first_BS.shape[0] * first_BS.shape[1] ** 2
    return sum((queries.stop - queries.start) * (keys.stop - keys.start) for queries, keys, _ in _blocks(first_BS))


@register_flop_formula(torch.ops.gemcutter.attend_documents, get_raw=True)
def _(q_BSNH: Tensor, _k: Tensor, _v: Tensor, first_BS: Tensor, *_: Any, **__: Any) -> int:
    return 2 * 2 * q_BSNH.shape[2] * q_BSNH.shape[3] * _pairs(first_BS)  # scores; output


@register_flop_formula(torch.ops.gemcutter.attend_documents_backward, get_raw=True)
def _(_grad: Tensor, q_BSNH: Tensor, _k: Tensor, _v: Tensor, first_BS: Tensor, *_: Any, **__: Any) -> int:
    return 5 * 2 * q_BSNH.shape[2] * q_BSNH.shape[3] * _pairs(first_BS)  # scores again; what shares, q, k and v get


attend_documents.register_autograd(_backward, setup_context=_keep)

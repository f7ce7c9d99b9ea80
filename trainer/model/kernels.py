"""Ways to compute attention, each a `Kernel` (see `trainer.model.attention`) that gives what `reference` gives.

    reference   the plain formula over whole rows
    sdpa        torch's scaled dot-product attention over whole rows, masked; it knows no soft cap
    documents   blocks of queries with the keys of their documents that are in reach: most of the work that a mask
                would throw away is not done. Reads on the host where documents begin
    flex        torch's flex attention: one fused kernel for documents, window and cap, compiled for the device;
                on a processor without gradients

Shape suffixes: as in `trainer.model.attention`; G = N / K queries per key head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex_module

from trainer.model.attention import Attend, Kernel, Rows
from trainer.model.document_attention import attend_documents, first_keys
from trainer.model.layers import soft_cap


def reference(segments_BS: Tensor, window: int | None, rows: Rows) -> Attend:
    """Scores in float32, then scale, cap, mask, softmax in this order."""
    return functools.partial(attend_reference, visible(segments_BS, window, rows))


def sdpa(segments_BS: Tensor, window: int | None, rows: Rows) -> Attend:
    """Scores never reach memory where torch's fused kernels apply; with a soft cap, the plain formula."""
    visible_BST = visible(segments_BS, window, rows)

    def attend(q_BSNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, cap: float | None, scale: float) -> Tensor:
        if cap is not None:  # leaving it out would be silently another model
            return attend_reference(visible_BST, q_BSNH, k_BTKH, v_BTKH, cap, scale)
        groups = q_BSNH.shape[2] // k_BTKH.shape[2]
        out_BNSH = F.scaled_dot_product_attention(
            q_BSNH.transpose(1, 2),
            _repeat_heads(k_BTKH, groups).transpose(1, 2),
            _repeat_heads(v_BTKH, groups).transpose(1, 2),
            attn_mask=visible_BST[:, None],
            scale=scale,
        )
        return out_BNSH.transpose(1, 2)

    return attend


def documents(segments_BS: Tensor, window: int | None, rows: Rows) -> Attend:
    """Blocks of queries, each with the keys in reach of one of them."""
    assert rows.whole(segments_BS) is segments_BS, "documents of rows that processes share lie on several of them"
    first_BS = first_keys(segments_BS, window)

    def attend(q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, cap: float | None, scale: float) -> Tensor:
        return attend_documents(q_BSNH, k_BSKH, v_BSKH, first_BS, cap, scale)

    return attend


def flex(segments_BS: Tensor, window: int | None, rows: Rows) -> Attend:
    """Blocks of keys that no query of a block sees are skipped (arXiv 2412.05496)."""
    B, S = segments_BS.shape
    segments_BT, first = rows.whole(segments_BS), rows.first(S)
    T = segments_BT.shape[1]

    def sees(b: Tensor, _: Tensor, s: Tensor, t: Tensor) -> Tensor:
        back = s + first - t
        near = back >= 0 if window is None else (back >= 0) & (back < window)
        return near & (segments_BS[b, s] == segments_BT[b, t])

    mask = flex_module.create_block_mask(sees, B, None, S, T, device=str(segments_BS.device))

    def attend(q_BSNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, cap: float | None, scale: float) -> Tensor:
        out_BNSH = _compiled_flex()(
            q_BSNH.transpose(1, 2),
            k_BTKH.transpose(1, 2),
            v_BTKH.transpose(1, 2),
            score_mod=None if cap is None else lambda score, *_: soft_cap(score, cap),
            block_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        return out_BNSH.transpose(1, 2)

    return attend


KERNELS: dict[str, Kernel] = {"reference": reference, "sdpa": sdpa, "documents": documents, "flex": flex}


def visible(segments_BS: Tensor, window: int | None, rows: Rows) -> Tensor:
    """Which key each query sees, [B, S, T] bool.

    Every query sees itself, padding (segment 0) included, so no row of scores is empty.
    """
    segments_BT = rows.whole(segments_BS)
    index_T = torch.arange(segments_BT.shape[1], device=segments_BS.device)
    index_S = index_T[: segments_BS.shape[1]] + rows.first(segments_BS.shape[1])
    return _near(index_S, index_T, window) & (segments_BS[:, :, None] == segments_BT[:, None, :])


def attend_reference(
    visible_BST: Tensor, q_BSNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, cap: float | None, scale: float
) -> Tensor:
    """`Attend` by the plain formula, for the keys that each query is said to see."""
    B, S, N, H = q_BSNH.shape
    K = k_BTKH.shape[2]
    q_BSKGH = q_BSNH.view(B, S, K, N // K, H)
    scores_BKGST = torch.einsum("bskgh,btkh->bkgst", q_BSKGH, k_BTKH).float() * scale
    if cap is not None:
        scores_BKGST = soft_cap(scores_BKGST, cap)
    scores_BKGST = scores_BKGST.masked_fill(~visible_BST[:, None, None], float("-inf"))
    shares_BKGST = scores_BKGST.softmax(dim=-1).to(v_BTKH.dtype)
    return torch.einsum("bkgst,btkh->bskgh", shares_BKGST, v_BTKH).reshape(B, S, N, H)


def _near(index_S: Tensor, index_T: Tensor, window: int | None) -> Tensor:
    back_ST = index_S[:, None] - index_T[None, :]
    return back_ST >= 0 if window is None else (back_ST >= 0) & (back_ST < window)


def _repeat_heads(x_BTKH: Tensor, groups: int) -> Tensor:
    """Each head `groups` times in place; a view when there is one head."""
    B, T, K, H = x_BTKH.shape
    return x_BTKH[:, :, :, None].expand(B, T, K, groups, H).reshape(B, T, K * groups, H)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_module.flex_attention)

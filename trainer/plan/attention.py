"""Which queries meet which keys: what each kernel of `trainer.model.kernels` works on, without torch."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.model.config import Kind
from trainer.plan.layout import Layout

BLOCK = 128  # queries, and keys, taken together: `QUERIES` of trainer.model.document_attention, which needs torch
SPLASH = 512  # most of them that splash attention takes together; rows are whole multiples of what it takes


def fused(at: Layout) -> bool:
    """Whether scores never reach memory; else the plain formula is computed."""
    return at.kernel in ("flex", "documents", "splash") or (
        at.kernel == "sdpa" and at.config.attention_soft_cap is None
    )


def computed_pairs(at: Layout, kind: Kind, document: int) -> int:
    """Pairs of a query and a key, seen or not, that a layer computes for each head.

    Rows are documents of that many tokens end to end, cut where the row ends.
    """
    if at.kernel == "flex":  # whole blocks of keys, too
        blocks = sum((end - 1) // BLOCK - first // BLOCK + 1 for _, first, end in _blocks(at, kind, document))
        return at.rows * BLOCK**2 * blocks
    if at.kernel == "splash":  # the same, but it passes over no block for its documents
        size = next(size for size in range(SPLASH, 0, -BLOCK) if at.sequence_length % size == 0)
        return at.rows * size * sum(end - first for _, first, end in _blocks(at, kind, at.sequence_length, size))
    if at.kernel == "documents":
        return at.rows * sum((end - start) * (end - first) for start, first, end in _blocks(at, kind, document))
    return at.attended * at.sequence_length


def _blocks(at: Layout, kind: Kind, document: int, size: int = BLOCK) -> Iterator[tuple[int, int, int]]:
    """Of a row, blocks of queries: first query, first key, end of both; keys begin at a multiple of the size.

    Of a row that processes share those of the last one, who has most to do.
    """
    window = at.config.window if kind == "local" else None
    for start in range(at.sequence_length - at.attended // at.rows, at.sequence_length, size):
        earliest = start // document * document  # of the document of the block's first query, which sees farthest back
        if window is not None:
            earliest = max(earliest, start - window + 1)
        yield start, earliest // size * size, min(start + size, at.sequence_length)

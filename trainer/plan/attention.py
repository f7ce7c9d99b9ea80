"""Which queries meet which keys: what each kernel of `trainer.model.kernels` works on, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.model.config import Kind
from trainer.plan.layout import Layout

BLOCK = 128  # queries, and keys, that flex attention takes or leaves together


@dataclass(frozen=True)
class Part:
    """Queries that attend to keys by themselves, so many times in a micro-batch.

    causal  the keys are the queries' own, and those that are not later are seen; else a mask says
    """

    queries: int
    keys: int
    causal: bool
    times: int

    @property
    def pairs(self) -> int:
        """Of a query and a key, seen or not, all times together."""
        return self.times * self.queries * self.keys


def fused(at: Layout) -> bool:
    """Whether scores never reach memory; else the plain formula is computed."""
    return at.kernel == "flex" or (at.kernel != "reference" and at.config.attention_soft_cap is None)


def parts(at: Layout, kind: Kind, document: int) -> list[Part]:
    """Of a layer, where rows are documents of that many tokens end to end, cut where the row ends."""
    if at.kernel != "documents":
        return [Part(at.attended // at.rows, at.sequence_length, False, at.rows)]
    whole, rest = divmod(at.sequence_length, document)
    window = at.config.window if kind == "local" else None
    return _of_document(document, window, at.rows * whole) + (_of_document(rest, window, at.rows) if rest else [])


def computed_pairs(at: Layout, kind: Kind, document: int) -> int:
    """Pairs of a query and a key that a layer computes for each head.

    Under a mask all of them, and where attention is causal by itself those that are seen: of the blocks on the
    diagonal kernels compute a little more.
    """
    if at.kernel == "flex":
        return at.rows * BLOCK**2 * _blocks(at, kind, document)
    return sum(
        part.times * part.queries * (part.queries + 1) // 2 if part.causal and fused(at) else part.pairs
        for part in parts(at, kind, document)
    )


def _of_document(length: int, window: int | None, times: int) -> list[Part]:
    queries = length if window is None else min(window, length)
    more, rest = divmod(length - queries, queries)
    found = [Part(queries, queries, True, times)]
    if more:
        found.append(Part(queries, 2 * queries, False, more * times))
    if rest:
        found.append(Part(rest, queries + rest, False, times))
    return found


def _blocks(at: Layout, kind: Kind, document: int) -> int:
    """Of a row, those of which a query sees a key; of a row that processes share, the last one's, who has most."""
    window = at.config.window if kind == "local" else None
    queries = at.attended // at.rows
    found = 0
    for first in range(at.sequence_length - queries, at.sequence_length, BLOCK):
        start = first // document * document  # of the document of the block's first query, which sees farthest back
        earliest = start if window is None else max(start, first - window + 1)
        last = min(first + BLOCK, at.sequence_length) - 1
        found += last // BLOCK - earliest // BLOCK + 1
    return found

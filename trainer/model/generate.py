"""Greedy decoding with a key-value cache. Knows no tokenizer: who asks for tokens decides when there are enough.

Every pass after the first has the shape of one token and a cache of fixed length, so that a compiler sees two shapes.

Shape suffixes: B rows, S positions of a pass, T places of the cache, D width, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.model.gemma import Gemma
from trainer.model.kernels import sdpa


@torch.inference_mode()
def greedy(model: Gemma, prompts: Sequence[Sequence[int]], most: int, words: int) -> Iterator[list[int]]:
    """The likeliest next token of each row, up to `most` times; stop asking to stop earlier.

    Args:
        model: held whole by this process.
        prompts: ids of each row, BOS included; rows may differ in length.
        most: tokens of a row, which the cache has room for.
        words: pieces of the tokenizer. Embedding rows beyond them, which no text has, are never written.

    Raises:
        ValueError: there is no prompt, or an empty one.
    """
    if not prompts or not all(prompts):
        raise ValueError("nothing follows an empty prompt: begin each with the id of BOS")
    # On the left, so that every row writes its next token at the same place.
    lengths_B1 = torch.tensor([[len(prompt)] for prompt in prompts])
    S = int(lengths_B1.max())
    tokens_BS = torch.tensor([[0] * (S - len(prompt)) + list(prompt) for prompt in prompts])
    positions_BS = torch.arange(S) - (S - lengths_B1)
    segments_BS = (positions_BS >= 0).int()
    device = model.embedding.weight.device
    inputs = tokens_BS.to(device), segments_BS.to(device), positions_BS.clamp(min=0).to(device)
    cache = _Cache(S + most - 1, device)  # the last token is no input
    for _ in range(most):
        logits_BV = model.logits(cache.hidden(model, *inputs)[:, -1])[:, :words]
        tokens_B1 = logits_BV.argmax(dim=-1, keepdim=True)
        yield tokens_B1[:, 0].tolist()
        inputs = tokens_B1, torch.ones_like(tokens_B1, dtype=torch.int32), inputs[2][:, -1:] + 1


class _Cache:
    """`trainer.model.attention.Rows` of which each pass computes a run of places, and remembers what those before did.

    Passes ask for the same tensors in the same order, so a count tells whose keys or values are meant. Places that no
    pass has reached hold zeros, which causality hides. Local layers keep all places, too, and mask those out of reach.
    """

    def __init__(self, places: int, device: torch.device) -> None:
        self._places = places
        self._done = torch.zeros((), dtype=torch.int64, device=device)  # no number, which would be compiled in
        self._kept: list[Tensor] = []
        self._asked = 0

    def hidden(self, model: Gemma, tokens_BS: Tensor, segments_BS: Tensor, positions_BS: Tensor) -> Tensor:
        """`Gemma.hidden` of the places that follow, which see all before them; [B, S, D]."""
        outside = model.rows, model.kernel
        model.rows, model.kernel, self._asked = self, sdpa, 0  # a pass holds a few queries for all the keys
        try:
            x_BSD = model.hidden(tokens_BS, segments_BS, positions_BS)
        finally:
            model.rows, model.kernel = outside
        assert self._asked == len(self._kept), "a pass must ask for what the pass before asked for"
        self._done += tokens_BS.shape[1]
        return x_BSD

    def first(self, positions: int) -> Tensor:
        return self._done

    def whole(self, x: Tensor) -> Tensor:
        if self._asked == len(self._kept):
            self._kept.append(x.new_zeros((x.shape[0], self._places, *x.shape[2:])))
        kept = self._kept[self._asked]
        self._asked += 1
        return kept.index_copy_(1, self._done + torch.arange(x.shape[1], device=x.device), x)

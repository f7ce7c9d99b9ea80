"""Bits per byte of held-out documents: a loss that models with different tokenizers share.

Knows nothing of runs or tasks. Counts what the training loss counts: every piece and EOS is predicted once, BOS never.

Shape suffixes: B rows, S positions per row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from conf.exits import DataError
from data_pipeline.pack import Row, pack
from data_pipeline.reader import Shards
from data_pipeline.stream import documents
from data_pipeline.tokenizer import Tokenizer
from trainer.model import Gemma

_GROUP = 1024  # documents packed together: bounds host memory, leaves few rows partly empty


@torch.inference_mode()
def bits_per_byte(
    model: Gemma, tokenizer: Tokenizer, manifest: str, sequence_length: int, batch_tokens: int, limit: int | None = None
) -> dict[str, Any]:
    """value = nats / ln 2 / bytes, over whole documents.

    nats      negative log-likelihood of all predicted tokens, EOS included, as the training loss sums it
    bytes     UTF-8 bytes of the decoded text
    tokens    predicted tokens
    documents how many

    A document of more than `sequence_length` slots is cut into consecutive pieces as in training (`pack`): a later
    piece starts, at position 0 and without BOS, with the last target of the one before.

    Args:
        manifest: of held-out token shards.
        sequence_length: positions the model was trained on.
        batch_tokens: positions of a forward pass, padding included; a single longer row is passed alone. The result
            does not depend on it, but for rounding.
        limit: only the first so many documents.

    Raises DataError where the shards are missing, broken or without text, ConfigError where another tokenizer made
    them.
    """
    Shards.open(manifest).check_tokenizer(tokenizer)
    chosen = (tokens for _, tokens in itertools.islice(documents(manifest), limit))
    nats, size, predicted, count = 0.0, 0, 0, 0
    while group := list(itertools.islice(chosen, _GROUP)):
        nats += _nats(model, group, sequence_length, batch_tokens)
        size += sum(len(tokenizer.decode(tokens).encode()) for tokens in group)
        predicted += sum(len(tokens) - 1 for tokens in group)
        count += len(group)
    if not size:
        raise DataError(
            f"the held-out shards at {manifest} hold no text ({count} documents): raise tokenize.held_out and rerun "
            "`gemcutter tokenize`, or set data.held_out=null"
        )
    return {"value": nats / math.log(2) / size, "documents": count, "bytes": size, "tokens": predicted, "nats": nats}


def _nats(model: Gemma, group: list[np.ndarray], sequence_length: int, batch_tokens: int) -> float:
    lengths = np.array([len(tokens) for tokens in group])
    S = min(sequence_length, int(lengths.max()) - 1)  # short documents need no long rows
    rows = iter(pack(lengths, S, "best_fit"))
    device = next(model.parameters()).device
    total = 0.0
    while batch := list(itertools.islice(rows, max(1, batch_tokens // S))):
        total += model(*(array.to(device) for array in _tensors(group, batch, S))).double().item()
    return total


def _tensors(group: list[np.ndarray], rows: list[Row], S: int) -> Iterator[torch.Tensor]:
    """tokens, segments, positions, targets, weights: each [B, S], in the order the model takes them."""
    shape = (len(rows), S)
    tokens_BS, targets_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments_BS, positions_BS = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for line, row in enumerate(rows):
        slot = 0
        for segment, (document, start, slots) in enumerate(row, start=1):
            here = slice(slot, slot + slots)
            tokens_BS[line, here] = group[document][start : start + slots]
            targets_BS[line, here] = group[document][start + 1 : start + slots + 1]
            segments_BS[line, here] = segment
            positions_BS[line, here] = np.arange(slots)
            slot += slots
    weights_BS = (segments_BS > 0).astype(np.float32)
    yield from map(torch.from_numpy, (tokens_BS, segments_BS, positions_BS, targets_BS, weights_BS))

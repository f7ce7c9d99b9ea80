"""Bits per byte of held-out documents: a loss that models with different tokenizers share.

Knows nothing of runs or tasks. Counts what the training loss counts: every piece and EOS is predicted once, BOS never.

Shape suffixes: B rows, S positions per row.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

from conf.exits import DataError
from data_pipeline.pack import Rows, pack
from data_pipeline.reader import Shards
from data_pipeline.rows import Row, fill
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
    chosen = (tokens for _, tokens in itertools.islice(documents(manifest, tokenizer), limit))
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
    rows, size = pack(lengths, S, "best_fit"), max(1, batch_tokens // S)
    device = next(model.parameters()).device
    total = 0.0
    for first in range(0, len(rows), size):
        numbers = range(first, min(first + size, len(rows)))
        filled = fill([_row(group, rows, number) for number in numbers], len(numbers), S, group[0].dtype)
        arrays = (filled.tokens_BS, filled.segments_BS, filled.positions_BS, filled.targets_BS, filled.weights_BS)
        total += model(*(torch.from_numpy(array).to(device) for array in arrays)).double().item()
    return total


def _row(group: list[np.ndarray], rows: Rows, number: int) -> Row:
    pieces = list(rows.pieces(number))
    return Row(
        [group[piece.document].data for piece in pieces],
        [piece.start for piece in pieces],
        [piece.slots for piece in pieces],
    )

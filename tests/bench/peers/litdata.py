"""litdata: StreamingDataset with TokensLoader on chunks written by `optimize`.

Tried: iterating the dataset and indexing it, which are alike, and its own StreamingDataLoader without workers, which is
slower by its collation; on chunks of 8 and of 64 MiB, which are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import litdata
import numpy as np
import torch

from tests.bench.peers.protocol import Batches, Documents, Variant, inputs_and_targets, run

_CHUNK_TOKENS = 32 * 2**20
_PART_DOCUMENTS = 4096


def prepare(documents: Documents, out: Path, S: int) -> None:
    """Chunks of whole rows, so that no row is lost at their ends."""
    parts = range(0, len(documents.lengths), _PART_DOCUMENTS)
    litdata.optimize(
        fn=_Part(documents),
        inputs=list(parts),
        output_dir=str(out),
        chunk_size=_CHUNK_TOKENS // (S + 1) * (S + 1),
        item_loader=litdata.TokensLoader(),
        num_workers=1,
        reorder_files=False,
        keep_data_ordered=True,
        start_method="fork",
        verbose=False,
    )


class _Part:
    """Gives `optimize` the documents from a number on."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.starts = np.cumsum(documents.lengths, dtype=np.int64) - documents.lengths

    def __call__(self, first: int) -> Iterator[torch.Tensor]:
        for number in range(first, min(first + _PART_DOCUMENTS, len(self.starts))):
            at = self.starts[number]
            yield torch.from_numpy(self.documents.tokens[at : at + self.documents.lengths[number]].copy())


def _dataset(out: Path, S: int, shuffle: bool = False) -> litdata.StreamingDataset:
    loader = litdata.TokensLoader(block_size=S + 1)
    return litdata.StreamingDataset(str(out), item_loader=loader, shuffle=shuffle, drop_last=True)


def _iterated(out: Path, S: int, B: int, shuffle: bool = False) -> Batches:
    dataset = _dataset(out, S, shuffle)
    while True:
        rows = (row for row in dataset)  # the dataset is its own iterator and begins again at each iter()
        while len(some := list(islice(rows, B))) == B:
            yield inputs_and_targets(torch.stack(some))


def _indexed(out: Path, S: int, B: int) -> Batches:
    dataset = _dataset(out, S)
    while True:
        for first in range(0, len(dataset) - B + 1, B):
            yield inputs_and_targets(torch.stack([dataset[number] for number in range(first, first + B)]))


def _loader(out: Path, S: int, B: int) -> Batches:
    loader = litdata.StreamingDataLoader(_dataset(out, S), batch_size=B, num_workers=0, drop_last=True)
    while True:
        yield from map(inputs_and_targets, loader)


if __name__ == "__main__":
    run(
        prepare,
        {
            "iterate": Variant(_iterated, "iter(StreamingDataset(TokensLoader(S + 1))), torch.stack; no shuffle"),
            "shuffled": Variant(
                partial(_iterated, shuffle=True), "iter(StreamingDataset(TokensLoader(S + 1), shuffle)), torch.stack"
            ),
            "index": Variant(_indexed, "StreamingDataset(TokensLoader(S + 1))[i], torch.stack"),
            "loader": Variant(_loader, "StreamingDataLoader(num_workers=0) over TokensLoader(S + 1); no shuffle"),
        },
    )

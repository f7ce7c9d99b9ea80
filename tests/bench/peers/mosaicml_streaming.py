"""mosaicml-streaming: MDS with a sample per ready row of S + 1 tokens.

That is its best case: it has no packing, and the type and shape of a row stand in the header of the shard instead of in
every sample. Tried: iterating the dataset, its own StreamingDataLoader without workers, indexing one sample and a slice
of samples; shards of 16, 64 and 256 MiB, which are alike, as the file is opened for every sample.

Indexing is the fastest, but it is not the loader: the order, the shuffle and the state it could resume from belong to
iterating, whose threads compete with the reader for the one core. Both are reported.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

try:
    import torchvision  # noqa: F401  streaming imports it for its image datasets
except RuntimeError:
    # The operators of its CUDA build do not load beside a CPU torch, and its import then stops where it describes them.
    # Declarations are enough to go on; nothing here ever calls one.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from tests.bench.peers.protocol import Batches, Documents, Variant, inputs_and_targets, run

_SHARD_BYTES = 64 * 2**20


def prepare(documents: Documents, out: Path, S: int) -> None:
    """Uncompressed shards without hashes, so that nothing is verified or unpacked when they are read."""
    kind = f"ndarray:{documents.tokens.dtype.name}:{S + 1}"
    with MDSWriter(out=str(out), columns={"row": kind}, compression=None, size_limit=_SHARD_BYTES) as shards:
        for row in documents.rows(S + 1):
            shards.write({"row": row})


def _dataset(out: Path, B: int, shuffle: bool = False) -> StreamingDataset:
    clean_stale_shared_memory()  # of a process that was stopped
    return StreamingDataset(local=str(out), shuffle=shuffle, batch_size=B)


def _iterated(out: Path, S: int, B: int, shuffle: bool = False) -> Batches:
    dataset = _dataset(out, B, shuffle)
    while True:
        rows = iter(dataset)
        while len(some := list(islice(rows, B))) == B:
            yield inputs_and_targets(np.stack([sample["row"] for sample in some]))


def _loader(out: Path, S: int, B: int) -> Batches:
    loader = StreamingDataLoader(_dataset(out, B), batch_size=B, num_workers=0, drop_last=True)
    while True:
        for batch in loader:
            yield inputs_and_targets(batch["row"])


def _indexed(out: Path, S: int, B: int) -> Batches:
    dataset = _dataset(out, B)
    while True:
        for first in range(0, dataset.num_samples - B + 1, B):
            yield inputs_and_targets(np.stack([dataset[number]["row"] for number in range(first, first + B)]))


def _sliced(out: Path, S: int, B: int) -> Batches:
    dataset = _dataset(out, B)
    while True:
        for first in range(0, dataset.num_samples - B + 1, B):
            yield inputs_and_targets(np.stack([sample["row"] for sample in dataset[first : first + B]]))


if __name__ == "__main__":
    run(
        prepare,
        {
            "index": Variant(_indexed, "StreamingDataset[i], np.stack; fixed-size rows, no hashes"),
            "iterate": Variant(_iterated, "iter(StreamingDataset), np.stack; fixed-size rows, no hashes, no shuffle"),
            "shuffled": Variant(
                partial(_iterated, shuffle=True), "iter(StreamingDataset(shuffle)), np.stack; no hashes"
            ),
            "loader": Variant(_loader, "StreamingDataLoader(num_workers=0); fixed-size rows, no hashes, no shuffle"),
            "slice": Variant(_sliced, "StreamingDataset[i:j], np.stack; fixed-size rows, no hashes"),
        },
    )

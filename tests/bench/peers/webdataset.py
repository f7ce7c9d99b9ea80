"""webdataset: tars of .npy members.

It has no packing: documents are laid end to end and cut into rows of S + 1, one concatenation a batch.

Tried: a sample per document, read with `decode()`, with np.load and with np.frombuffer behind a header of known length;
and, as its best case, a sample per ready row of S + 1 tokens, which spares it packing and three quarters of the
members. Bare tokens behind a known header are the fastest way it has: what remains is its reading of tars by `tarfile`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import webdataset
from torch import Tensor

from tests.bench.peers.protocol import Batches, Documents, Variant, inputs_and_targets, run

_SHARD_TOKENS = 16 * 2**20
_HEADER = 128  # bytes that np.save writes before a one-dimensional array


def prepare(documents: Documents, out: Path, S: int) -> None:
    """Two sets of shards: a sample per document, a sample per row."""
    _write(documents, out / "documents")
    _write(documents.rows(S + 1), out / "rows")


def _write(arrays: Iterable[np.ndarray], folder: Path) -> None:
    folder.mkdir(parents=True)
    pattern = str(folder / "%05d.tar")
    with webdataset.ShardWriter(pattern, maxcount=2**31, maxsize=2 * _SHARD_TOKENS, encoder=False, verbose=0) as shards:
        for number, array in enumerate(arrays):
            buffer = io.BytesIO()
            np.save(buffer, array)
            shards.write({"__key__": f"{number:08d}", "npy": buffer.getvalue()})


def _samples(folder: Path) -> webdataset.WebDataset:
    return webdataset.WebDataset([str(file) for file in sorted(folder.glob("*.tar"))], shardshuffle=False)


def _rows(out: Path, S: int, B: int) -> Batches:
    samples = _bare(out / "rows")
    while True:
        yield inputs_and_targets(np.concatenate(list(islice(samples, B))).reshape(B, S + 1))


def _documents(read: Callable[[Path], Iterator[np.ndarray]], out: Path, S: int, B: int) -> Batches:
    return _packed(read(out / "documents"), S, B)


def _bare(folder: Path) -> Iterator[np.ndarray]:
    dataset = _samples(folder)
    dtype = np.load(io.BytesIO(next(iter(dataset))["npy"])).dtype
    while True:
        for sample in dataset:
            yield np.frombuffer(sample["npy"], dtype, offset=_HEADER)


def _loaded(folder: Path) -> Iterator[np.ndarray]:
    dataset = _samples(folder)
    while True:
        for sample in dataset:
            yield np.load(io.BytesIO(sample["npy"]))


def _decoded(folder: Path) -> Iterator[np.ndarray]:
    dataset = _samples(folder).decode()
    while True:
        for sample in dataset:
            yield sample["npy"]


def _packed(documents: Iterator[np.ndarray], S: int, B: int) -> Iterator[tuple[Tensor, ...]]:
    """Documents end to end, cut into rows of S + 1; what a batch leaves over begins the next."""
    need = B * (S + 1)
    held: list[np.ndarray] = []
    have = 0
    for document in documents:
        held.append(document)
        have += len(document)
        if have >= need:
            whole = np.concatenate(held)
            while have >= need:
                yield inputs_and_targets(whole[:need].reshape(B, S + 1))
                whole = whole[need:]
                have -= need
            held = [whole]


if __name__ == "__main__":
    run(
        prepare,
        {
            "documents": Variant(
                partial(_documents, _bare), "a sample per document, np.frombuffer, concatenated into rows; no shuffle"
            ),
            "documents-load": Variant(
                partial(_documents, _loaded), "a sample per document, np.load, concatenated into rows; no shuffle"
            ),
            "documents-decode": Variant(
                partial(_documents, _decoded), "a sample per document, decode(), concatenated into rows; no shuffle"
            ),
            "rows": Variant(_rows, "a sample per ready row of S + 1, np.frombuffer, stacked; no shuffle"),
        },
    )

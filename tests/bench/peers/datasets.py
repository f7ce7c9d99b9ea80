"""Hugging Face datasets: ready rows of S + 1 tokens in memory-mapped Arrow files.

A list of fixed length spares it the offsets of every row. Tried: slices of the dataset and batches of an iterable one,
each in the formats numpy, torch and arrow. numpy and torch visit every row in Python; the table of format arrow is
viewed as one numpy array without a copy, and takes half their time. Iterating spares the look-up of each slice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch import Tensor

from tests.bench.peers.protocol import Batches, Documents, Variant, inputs_and_targets, run


def prepare(documents: Documents, out: Path, S: int) -> None:
    """One dataset with the column `row`."""
    flat = pa.array(np.asarray(documents.rows(S + 1)).reshape(-1))
    table = pa.table({"row": pa.FixedSizeListArray.from_arrays(flat, S + 1)})
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(str(out))


def _from_table(table: pa.Table) -> np.ndarray:
    column = table["row"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _from_column(batch: dict[str, Any]) -> np.ndarray | Tensor:
    return batch["row"]


def _sliced(kind: str, rows: Callable[[Any], np.ndarray | Tensor], out: Path, S: int, B: int) -> Batches:
    dataset = datasets.load_from_disk(str(out)).with_format(kind)
    while True:
        for first in range(0, len(dataset) - B + 1, B):
            yield inputs_and_targets(rows(dataset[first : first + B]))


def _iterated(kind: str, rows: Callable[[Any], np.ndarray | Tensor], out: Path, S: int, B: int) -> Batches:
    dataset = datasets.load_from_disk(str(out)).to_iterable_dataset().with_format(kind)
    while True:
        for batch in dataset.iter(batch_size=B, drop_last_batch=True):
            yield inputs_and_targets(rows(batch))


def _shuffled(out: Path, S: int, B: int) -> Batches:
    dataset, epoch = datasets.load_from_disk(str(out)), 0
    while True:
        mixed = dataset.shuffle(seed=epoch).with_format("arrow")
        epoch += 1
        for first in range(0, len(mixed) - B + 1, B):
            yield inputs_and_targets(_from_table(mixed[first : first + B]))


if __name__ == "__main__":
    run(
        prepare,
        {
            "iterate-arrow": Variant(
                partial(_iterated, "arrow", _from_table), "IterableDataset.iter(B), format arrow; no shuffle"
            ),
            "iterate-numpy": Variant(
                partial(_iterated, "numpy", _from_column), "IterableDataset.iter(B), format numpy; no shuffle"
            ),
            "iterate-torch": Variant(
                partial(_iterated, "torch", _from_column), "IterableDataset.iter(B), format torch; no shuffle"
            ),
            "shuffled": Variant(_shuffled, "dataset.shuffle(seed)[i:j], format arrow"),
            "slice-arrow": Variant(partial(_sliced, "arrow", _from_table), "dataset[i:j], format arrow; no shuffle"),
            "slice-numpy": Variant(partial(_sliced, "numpy", _from_column), "dataset[i:j], format numpy; no shuffle"),
            "slice-torch": Variant(partial(_sliced, "torch", _from_column), "dataset[i:j], format torch; no shuffle"),
        },
    )

"""One rank of a job that reads and never ends by itself: for the kills of `order.py`.

    python -m tests.bench.readers TOKENS RANK WORLD WORKERS FIRST_STEP OUTPUT

A line of OUTPUT for each step: [position within the step, sha256] of each row the rank read in it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conf.schema import Stage
from data_pipeline.batch import Batch
from data_pipeline.shards import Document, write_shards
from data_pipeline.stream import TokenStream

ROWS, S = 24, 64


def write_tokens(folder: Path) -> None:
    """Three sources of documents whose tokens are found nowhere else."""
    draw = np.random.default_rng(0)

    def documents() -> Iterator[Document]:
        token = 4
        for source, count in (("web", 60), ("code", 27), ("books", 11)):
            for number in range(count):
                length = int(draw.integers(3, 180))
                yield Document(
                    f"{source}/{number}", source, np.array([2, *range(token, token + length - 2), 1]), length
                )
                token += length - 2

    write_shards(
        documents(), folder, shard_tokens=1800, block_documents=4, tokenizer_sha256="", vocab_size=2**17, config={},
        lineage="",
    )  # fmt: skip


def micro_batch(world: int) -> int:
    """Rows of a micro-batch: several to a step, where the ranks leave room for it."""
    return next(size for size in (3, 2, 1) if ROWS % (size * world) == 0)


def main() -> None:
    """Read for ever."""
    tokens, (rank, world, workers, first), output = sys.argv[1], map(int, sys.argv[2:6]), Path(sys.argv[6])
    stream = TokenStream(
        f"{tokens}/manifest.json", sequence_length=S, packing="best_fit", window_blocks=4, seed=0, workers=workers,
        mixture=[Stage(), Stage(from_sample=9 * ROWS, weights={"web": 0.6, "books": 0.4}), Stage(from_sample=401)],
    )  # fmt: skip
    size = micro_batch(world)
    batches = stream.batches(
        rows_per_step=ROWS, micro_batch=size, rank=rank, world=world, start=stream.cursor(first * ROWS)
    )
    with output.open("w", buffering=1) as file:
        while True:
            parts = [next(batches) for _ in range(ROWS // (size * world))]
            rows = [
                ((part * world + rank) * size + row, _digest(batch, row))
                for part, batch in enumerate(parts)
                for row in range(size)
            ]
            file.write(json.dumps(rows) + "\n")


def _digest(batch: Batch, row: int) -> str:
    names = ("tokens_BS", "targets_BS", "segments_BS", "positions_BS", "weights_BS")
    return hashlib.sha256(b"".join(getattr(batch, name)[row].numpy().tobytes() for name in names)).hexdigest()


if __name__ == "__main__":
    main()

"""datatrove: MinHash as FineWeb ran it, in one process: signatures, buckets, clusters, and the filter.

    python -m tests.bench.peers.datatrove_minhash DOCUMENTS OUT TASKS

DOCUMENTS is a folder of jsonl files with `id` and `text`. Prints one line of JSON: what was done, and the seconds of
each stage. Then writes OUT/pairs.npy: a row (file, document, file, document, Jaccard similarity of its own shingles)
for each pair that its second stage found; that is not timed.

Tried: words by blanks alone would be faster than spaCy, but are not what FineWeb was deduplicated by; whole files of
signatures in memory (lines_to_buffer=-1) are faster than five lines at a time.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.logging import logger

CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def main() -> None:
    """Do what the command line asks for."""
    documents, out, tasks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    logger.remove()
    signatures, buckets, removed = (str(out / name) for name in ("signatures", "buckets", "removed"))
    warm = MinhashDedupSignature(signatures, CONFIG)
    warm.get_signature(warm.get_shingles("loads the tokenizer of words for English"))
    seconds: dict[str, float] = {}
    cpu = time.process_time()
    for name, count, steps in (
        ("signatures", tasks, [JsonlReader(documents), MinhashDedupSignature(signatures, CONFIG)]),
        ("buckets", CONFIG.num_buckets, [MinhashDedupBuckets(signatures, buckets, config=CONFIG, lines_to_buffer=-1)]),
        ("clusters", 1, [MinhashDedupCluster(buckets, removed, CONFIG, lines_to_buffer=-1)]),
        (
            "filter",
            tasks,
            [
                JsonlReader(documents),
                MinhashDedupFilter(removed, lines_to_buffer=-1),
                JsonlWriter(str(out / "kept"), compression=None),
            ],
        ),
    ):
        began = time.perf_counter()
        LocalPipelineExecutor(
            pipeline=steps, tasks=count, workers=1, logging_dir=str(out / "logs" / name), skip_completed=False
        ).run()
        seconds[name] = time.perf_counter() - began
    result: dict[str, Any] = {
        "settings": "word 5-grams by spaCy, 64-bit xxhash, 14 x 8, uncompressed jsonl in and out",
        "seconds": sum(seconds.values()),
        "cpu_seconds": time.process_time() - cpu,
        "stages": seconds,
        "removed": sum(path.stat().st_size // 4 for path in Path(removed).glob("*.remove")),
    }
    write_pairs(Path(documents), out, warm)
    print(json.dumps(result))


def write_pairs(documents: Path, out: Path, by: MinhashDedupSignature) -> None:
    """Write all pairs with the similarity of their shingles."""
    found = {
        row for path in sorted((out / "buckets").glob("*.dups")) for row in struct.iter_unpack("<4I", path.read_bytes())
    }
    wanted = {one for row in found for one in (row[:2], row[2:])}
    shingles: dict[tuple[int, int], set[int]] = {}
    for number, path in enumerate(sorted(documents.iterdir())):
        with path.open() as lines:
            for row, line in enumerate(lines):
                if (number, row) in wanted:
                    shingles[number, row] = set(by.get_shingles(json.loads(line)["text"])[:, 0].tolist())
    rows = []
    for row in sorted(found):
        one, other = shingles[row[:2]], shingles[row[2:]]
        rows.append((*row, len(one & other) / len(one | other)))
    np.save(out / "pairs.npy", np.array(rows, np.float64).reshape(-1, 5))


if __name__ == "__main__":
    main()

"""Our rules in the protocol of `peers/datatrove.py`: every signal there is, counted in batches, and the reasons.

    python -m tests.bench.ours_rules read TEXTS SECONDS

What datatrove's chain does not have is counted, too: RefinedWeb's signals, and C4's with terminal punctuation.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipeline import signals
from data_pipeline.signals.thresholds import reasons
from data_pipeline.signals.tokens import Tokens

BATCH_CHARACTERS = 1 << 20


def batches(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, about so many characters at a time."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) >= BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def dropped(batch: list[str]) -> int:
    """How many documents of a batch break a rule."""
    languages = ["en"] * len(batch)
    return sum(map(bool, reasons(signals.measure(Tokens.of(batch), languages), languages)))


def main() -> None:
    """Judge the texts again and again for about so many seconds, and tell how long it took."""
    _, file, seconds = sys.argv[1:]
    texts = [json.loads(line) for line in Path(file).read_text().splitlines()]
    chunks = list(batches(texts))
    dropped(chunks[0])  # loads or compiles the loops
    passes, found = 0, 0
    began, cpu = time.perf_counter(), time.process_time()
    while passes == 0 or time.perf_counter() - began < float(seconds):
        found = sum(map(dropped, chunks))
        passes += 1
    result = {
        "settings": f"all {len(signals.COLUMNS)} signals in batches of 1 MiB characters, limits of FineWeb",
        "characters": passes * sum(map(len, texts)),
        "dropped": found,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

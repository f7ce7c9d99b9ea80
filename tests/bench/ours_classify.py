"""Our classifier in the protocol of `peers/fasttext.py`, with the pieces that make probabilities apart.

python -m tests.bench.ours_classify FOLDER
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.classify import linear, train
from data_pipeline.signals.tokens import Tokens

SECONDS = 1.0  # of inference, at least
BATCH = 512  # pieces


def read(file: Path) -> tuple[list[str], list[bool]]:
    """Texts, and whether they are of the positive kind."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["text"] for row in rows], [row["positive"] for row in rows]


def learn(folder: Path) -> tuple[linear.Linear, float]:
    """The model, and the seconds from texts to it."""
    (texts, positive), (others, of_others) = read(folder / "training.jsonl"), read(folder / "calibration.jsonl")
    began = time.perf_counter()
    learned = linear.fit(*linear.features(Tokens.of(texts)), np.array(positive))
    slope, offset = train.calibrate(learned.margins(*linear.features(Tokens.of(others))), np.array(of_others))
    return dataclasses.replace(learned, slope=slope, offset=offset), time.perf_counter() - began


def rate(characters: int, work: Callable[[], object]) -> float:
    """Characters a second of work that is done again and again."""
    passes, began = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - began < SECONDS:
        work()
        passes += 1
    return passes * characters / (time.perf_counter() - began)


def main() -> None:
    """Learn twice, as the first time loads or compiles the loops, and measure."""
    folder = Path(sys.argv[1])
    learn(folder)
    model, seconds = learn(folder)
    texts, positive = read(folder / "held_out.jsonl")
    batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
    tokens = [Tokens.of(batch) for batch in batches]
    scores = np.concatenate([model.score(one) for one in tokens])
    figures = train.measure(scores, np.array(positive))
    characters = sum(map(len, texts))
    result = {
        "settings": f"{1 << model.bits} buckets, words and pairs of words, {linear.EPOCHS} epochs",
        **{key: figures[key] for key in ("accuracy", "auc", "calibration_error")},
        "training_seconds": seconds,
        "characters_per_second": rate(characters, lambda: [model.score(Tokens.of(batch)) for batch in batches]),
        "characters_per_second_of_tokens": rate(characters, lambda: [model.score(one) for one in tokens]),
        "model_bytes": len(model.dump()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

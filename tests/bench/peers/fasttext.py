"""fastText: its supervised classifier, on one thread.

    python -m tests.bench.peers.fasttext FOLDER EPOCHS

FOLDER holds training.jsonl, calibration.jsonl and held_out.jsonl, {text, positive} a line. Prints one line of JSON:
{settings, accuracy, auc, training_seconds, characters_per_second, model_bytes}. Learns from the first two, and reads
the third as fast as it goes. Lower case and single blanks are made beforehand and not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import fasttext
import numpy as np

SECONDS = 1.0  # of inference, at least


def read(file: Path) -> list[tuple[str, bool]]:
    """Texts as fastText wants them, and whether they are of the positive kind."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(" ".join(row["text"].lower().split()), row["positive"]) for row in rows]


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties by half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[places[positive]].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(above / (positive.sum() * (~positive).sum()))


def main() -> None:
    """Learn and measure."""
    folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
    settings = {"wordNgrams": 2, "epoch": epochs, "lr": 0.5, "dim": 64, "bucket": 200_000, "thread": 1, "seed": 0}
    with tempfile.TemporaryDirectory() as scratch:
        lines = Path(scratch, "lines.txt")
        rows = read(folder / "training.jsonl") + read(folder / "calibration.jsonl")
        lines.write_text("".join(f"__label__{int(positive)} {text}\n" for text, positive in rows))
        began = time.perf_counter()
        model = fasttext.train_supervised(str(lines), verbose=0, **settings)
        seconds = time.perf_counter() - began
        saved = Path(scratch, "model.bin")
        model.save_model(str(saved))
        size = saved.stat().st_size
    texts, positive = map(list, zip(*read(folder / "held_out.jsonl"), strict=True))
    scores = np.array([dict(zip(*model.predict(text, k=2), strict=True)).get("__label__1", 0.0) for text in texts])
    passes, began = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - began < SECONDS:
        for text in texts:
            model.predict(text)
        passes += 1
    result = {
        "settings": json.dumps(settings),
        "accuracy": float(np.mean((scores >= 0.5) == positive)),
        "auc": area(scores, np.array(positive)),
        "training_seconds": seconds,
        "characters_per_second": passes * sum(map(len, texts)) / (time.perf_counter() - began),
        "model_bytes": size,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

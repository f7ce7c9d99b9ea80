"""The `evaluate` job: a checkpoint of a run is scored, and the scores are kept beside it."""

from __future__ import annotations

import json
import sys

from conf import schema
from conf.exits import DONE
from conf.json_lines import writing
from trainer.evaluate.score import score
from trainer.trained import Trained


def evaluate(job: schema.Job) -> int:
    """Score, write `evals/step-<step>.json` in the run directory and say the scores.

    Those of averaged weights go to `evals/step-<step>-ema.json`. Raises ConfigError or DataError.
    """
    trained = Trained.open(job)
    data = trained.keys["data"]
    held_out = data["held_out"] if job.data.held_out else None  # data.held_out=null leaves bits per byte out
    scores = score(trained.model(), trained.tokenizer(), job.evaluate, held_out, data["sequence_length"])
    for line in summary(scores):
        print(line, file=sys.stderr)
    path = trained.run / "evals" / f"{trained.label}.json"
    temporary = path.with_suffix(".partial")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps({**scores, "provenance": trained.provenance()}, indent=1) + "\n")
        temporary.replace(path)
    print(f"scores of step {trained.checkpoint.step}: {path}", file=sys.stderr)
    return DONE


def summary(scores: dict) -> list[str]:
    """One line a score."""
    lines = [
        f"{task}: {result['metric']} {result['value']:.3f} (chance {result['chance']:.2f}, {result['items']} items)"
        for task, result in scores["tasks"].items()
    ]
    lines += [f"{task}: skipped, {reason}" for task, reason in scores["skipped"].items()]
    if (bits := scores["bits_per_byte"]) is not None:
        lines.append(f"held-out text: {bits['value']:.3f} bits per byte ({bits['documents']} documents)")
    return lines

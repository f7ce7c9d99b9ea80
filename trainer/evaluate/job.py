"""The `evaluate` job: a checkpoint of a run is scored, and the scores are kept beside it."""

from __future__ import annotations

import json
import sys

from conf import schema
from conf.exits import DONE
from conf.json_lines import writing
from trainer.evaluate.score import score
from trainer.lineage import kept_out, learnt_from
from trainer.trained import Trained


def evaluate(job: schema.Job) -> int:
    """Score, write `evals/step-<step>.json` in the run directory and say the scores.

    Those of averaged weights go to `evals/step-<step>-ema.json`. To the score of each task it adds what `kept_out` says
    of the files that were scored. Raises ConfigError or DataError.
    """
    trained = Trained.open(job)
    learnt = learnt_from(trained.checkpoint)
    data = trained.keys["data"]
    held_out = data["held_out"] if job.data.held_out else None  # data.held_out=null leaves bits per byte out
    scores = score(trained.model(), trained.tokenizer(), job.evaluate, held_out, data["sequence_length"])
    for task, files in scores["files"].items():
        scores["tasks"][task] |= kept_out(learnt, task, files)
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


_DOUBTS = {
    "other files": "certificates say that it was kept out of the training data, but by other files than those scored",
    "no": "no certificate says that it was kept out of all training data",
    "unknown": "whether it was kept out of the training data is unknown: {unknown}",
}


def summary(scores: dict) -> list[str]:
    """One line a score, and one a task that may have been trained on."""
    lines = []
    for task, result in scores["tasks"].items():
        of = f"(chance {result['chance']:.2f}, {result['items']} items)"
        lines.append(f"{task}: {result['metric']} {result['value']:.3f} {of}")
        if result["decontaminated"] != "yes":
            lines.append(f"{task}: {_DOUBTS[result['decontaminated']].format(**result)}")
    lines += [f"{task}: skipped, {reason}" for task, reason in scores["skipped"].items()]
    if (bits := scores["bits_per_byte"]) is not None:
        lines.append(f"held-out text: {bits['value']:.3f} bits per byte ({bits['documents']} documents)")
    return lines

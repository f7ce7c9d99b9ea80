"""All scores of one model: what the `evaluate` job writes down.

Knows nothing of where the model came from or where the scores go.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from conf import schema
from conf.exits import ConfigError
from data_pipeline.tokenizer import Tokenizer
from trainer.evaluate.bits_per_byte import bits_per_byte
from trainer.evaluate.tasks import files
from trainer.model import Gemma

FORMAT = 1
VARIABLE = "GEMCUTTER_BENCHMARKS"


def score(
    model: Gemma,
    tokenizer: Tokenizer,
    evaluate: schema.Evaluate,
    held_out: str | None,
    sequence_length: int | None = None,
) -> dict[str, Any]:
    """Task scores and bits per byte, ready to be written as JSON.

    format         1
    tasks          name -> metric, value, stderr (null of a single item), items, few_shot, version, chance
    files          name -> the files with the text of a scored task, and their sha256
    skipped        name -> why a task was not scored: its benchmark files are not there
    bits_per_byte  value, documents, bytes, tokens, nats; null without held-out shards
    limit          evaluate.limit: only the first so many items of each task and documents were scored; null: all
    harness        what scored the tasks, with its version; null where none was scored

    Args:
        evaluate: the keys `evaluate.*`; used are tasks, benchmarks, limit and batch_tokens.
        held_out: manifest of held-out token shards, or None.
        sequence_length: positions the model was trained on; None: the longest its size supports.

    Raises:
        ConfigError: an unknown task, limit below 1, lm-eval not installed, or held-out shards of another tokenizer.
        DataError: benchmark files or held-out shards are broken.
    """
    if evaluate.limit is not None and evaluate.limit < 1:
        raise ConfigError(f"evaluate.limit={evaluate.limit} must be at least 1, or null for all items")
    length = sequence_length or model.config.max_positions
    bits = None
    if held_out:  # first, as it is quick to refuse: shards that are not there must not cost the scores of the tasks
        bits = bits_per_byte(model, tokenizer, held_out, length, evaluate.batch_tokens, evaluate.limit)
    tasks, texts, skipped, harness = _score_tasks(model, tokenizer, evaluate, length)
    return {
        "format": FORMAT,
        "tasks": tasks,
        "files": texts,
        "skipped": skipped,
        "bits_per_byte": bits,
        "limit": evaluate.limit,
        "harness": harness,
    }


def _score_tasks(
    model: Gemma, tokenizer: Tokenizer, evaluate: schema.Evaluate, length: int
) -> tuple[dict[str, Any], dict[str, dict[str, str]], dict[str, str], str | None]:
    """Scores by task, files by task, reasons by skipped task, and the harness."""
    if not evaluate.tasks:
        return {}, {}, {}, None
    try:
        from trainer.evaluate import harness
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("lm_eval", "datasets"):
            raise
        raise ConfigError(
            f"evaluate.tasks={','.join(evaluate.tasks)} needs the package {error.name}, which is not installed: "
            "pip install 'gemcutter[eval]', or set evaluate.tasks=[]"
        ) from None
    harness.check_tasks(evaluate.tasks)
    benchmarks, origin = evaluate.benchmarks, "evaluate.benchmarks"
    if benchmarks is None:
        benchmarks, origin = os.environ.get(VARIABLE), VARIABLE
    if not benchmarks:
        reason = f"no folder of benchmark files is named: set evaluate.benchmarks or the variable {VARIABLE}"
        return {}, {}, dict.fromkeys(evaluate.tasks, reason), None
    skipped = {}
    for task in evaluate.tasks:
        if absent := files.missing(task, Path(benchmarks)):
            skipped[task] = (
                f"the folder {benchmarks} ({origin}) has no {' and no '.join(absent)}: put the file there, or set "
                f"evaluate.benchmarks or the variable {VARIABLE} to the folder that has it"
            )
    present = [task for task in dict.fromkeys(evaluate.tasks) if task not in skipped]
    if not present:
        return {}, {}, skipped, None
    texts = {task: files.with_text(task, Path(benchmarks)) for task in present}
    lm = harness.GemmaLM(model, tokenizer, evaluate.batch_tokens, length)
    return harness.score_tasks(lm, present, Path(benchmarks), evaluate.limit), texts, skipped, harness.NAME

"""`gemcutter demo`: the whole road on this machine, each job as its own command, then one table of what came out."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from conf import schema
from launch import local
from launch.curve import loss_curve

STAGES = ("curate", "tokenize", "train", "evaluate", "export")


def run(job: schema.Job, overrides: list[str]) -> int:
    """Run every stage; stops at the first that fails and returns its exit code."""
    if not any(override.startswith("experiment=") for override in overrides):
        overrides = ["experiment=demo", *overrides]
    console, began = Console(stderr=True), time.monotonic()
    for stage in STAGES:
        console.print(f"\n[bold]gemcutter {stage} {' '.join(overrides)}[/]", highlight=False, soft_wrap=True)
        sys.stderr.flush()
        code = local.run(stage, job, overrides)
        if code:
            console.print(f"gemcutter demo: {stage} ended with exit code {code}; run it again to go on from there")
            return code
    # In a file or a pipe nothing limits the width, and a path that is cut short helps nobody.
    wide = None if sys.stdout.isatty() else 140
    Console(width=wide).print(table(job, time.monotonic() - began))
    return 0


def table(job: schema.Job, seconds: float) -> Table:
    """What the stages left on disk, as one table."""
    run_directory = schema.run_directory(schema.run_id(job))
    text, tokens = Path(job.curate.output), Path(job.data.manifest)
    counts = _read(text / "manifest.json")["counts"]
    shards = _read(tokens)
    steps, held_out = _metrics(run_directory / "metrics.jsonl")
    latest = max((run_directory / "evals").glob("step-*.json"))
    scores = _read(latest)

    shown = Table("what", "value", title=f"gemcutter demo: {schema.run_id(job)}", title_justify="left")
    shown.add_column("where", overflow="fold")
    shown.add_row(
        "documents in / kept",
        f"{counts['documents_in']:,} / {counts['documents_kept']:,}",
        str(text / "data_card.html"),
    )
    shown.add_row("tokens, vocabulary", f"{shards['totals']['tokens']:,}, {shards['vocab_size']:,}", str(tokens))
    first, last = steps[min(steps)], steps[max(steps)]
    shown.add_row(
        "first / last loss", f"{first['loss']:.3f} / {last['loss']:.3f}", str(run_directory / "metrics.jsonl")
    )
    if held_out:
        shown.add_row("held-out loss", f"{held_out[max(held_out)]:.3f}", "")
    curve = run_directory / "loss.svg"
    losses = {step: values["loss"] for step, values in steps.items() if values["loss"] is not None}
    curve.write_text(loss_curve(schema.run_id(job), losses, held_out, shards["vocab_size"]))
    shown.add_row("loss curve", "", str(curve))
    speeds = sorted(values["tokens_per_second"] for values in steps.values())
    shown.add_row("tokens/s (median)", f"{speeds[len(speeds) // 2]:,.0f}", "")
    if scores["bits_per_byte"]:
        shown.add_row("bits per byte, held-out", f"{scores['bits_per_byte']['value']:.3f}", str(latest))
    for task, result in scores["tasks"].items():
        value = f"{result['value']:.3f} (chance {result['chance']:.2f}, {result['items']} items)"
        shown.add_row(f"{task} {result['metric']}", value, str(latest))
    for task, reason in scores["skipped"].items():
        shown.add_row(task, "skipped", reason)
    shown.add_row("checkpoint", f"step {max(steps)}", str(schema.checkpoint_directory(job)))
    export = max((run_directory / "exports").iterdir(), key=lambda folder: folder.name)
    shown.add_row("for transformers", "from_pretrained", str(export))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    shown.add_row("time, largest process", f"{seconds / 60:.1f} min, {peak:.2f} GiB", "")
    return shown


def _metrics(path: Path) -> tuple[dict[int, dict[str, Any]], dict[int, float]]:
    """Metrics by step and held-out losses by step; of equal steps the highest attempt holds."""
    lines = sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["attempt"])
    steps = {line["step"]: line for line in lines if "loss" in line}
    return steps, {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())

"""`gemcutter skip`: never feed a run these documents or steps again.

Appends to the run's skip list, with effect from the sample that its latest checkpoint stands before. Nothing is packed
anew: a document keeps its place with weight 0, a range of steps is passed over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from conf.exits import DONE, ConfigError
from conf.json_lines import append_line, read_lines
from trainer.arguments import Arguments
from trainer.explain import RecordedRun, history, parts_of_document, places_of
from trainer.run_directory import SKIP_LIST, existing_run, locked, read_skips


def skip(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = Arguments(prog="gemcutter skip", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run id or run directory")
    parser.add_argument(
        "--document", action="append", default=[], help="id of a document to leave out; may be repeated"
    )
    parser.add_argument("--steps", help="A-B: pass over what steps A to B would read")
    parser.add_argument("--block", action="append", default=[], help="FILE:NUMBER@SHARDS, as its error names it")
    parser.add_argument("--reason", default="", help="a word for the record")
    parser.add_argument("--list", action="store_true", help="show the list, add nothing")
    chosen = parser.parse_args(arguments)
    path = existing_run(chosen.run)
    if chosen.list:
        read_skips(path)  # says what is wrong with it
        for line in read_lines(path / SKIP_LIST):
            print(_shown(line))
        return DONE
    if not (chosen.document or chosen.steps or chosen.block):
        raise ConfigError("say what to skip: --document ID, --steps A-B or --block FILE:NUMBER@SHARDS")
    with locked(path):
        run = RecordedRun.open(str(path))
        entries = [entry for document in chosen.document for entry in _of_document(run, document)]
        entries += [_of_block(run, block) for block in chosen.block]
        if chosen.steps:
            entries.append(_of_steps(run, chosen.steps))
        for entry in entries:
            line = {"format": 1, "time": time.time(), "from_sample": run.cursor.samples_done, **entry}
            line |= {"reason": chosen.reason} if chosen.reason else {}
            append_line(path / SKIP_LIST, line)
            print(f"added to {path / SKIP_LIST}: {_shown(line)}")
        run.stream.skips = read_skips(path)
        for document in chosen.document:
            print(history(run, document, parts_of_document(run, document)))
    return DONE


def _of_document(run: RecordedRun, document: str) -> Iterator[dict[str, Any]]:
    for shards, block, number in places_of(run, document):
        yield {"document": document, "manifest": shards.sha256, "block": block, "documents": [number]}


def _of_block(run: RecordedRun, name: str) -> dict[str, Any]:
    match = re.fullmatch(r"(.+):(\d+)(?:@([0-9a-f]{8,64}))?", name)
    if not match:
        raise ConfigError(
            f"--block={name}: write FILE:NUMBER@SHARDS as the error names it, for example shard-00012.tar:7@1a2b3c4d"
        )
    number = int(match[2])
    found = [
        shards
        for shards in run.stream.all_shards
        if shards.sha256.startswith(match[3] or "")
        and number < shards.num_blocks
        and shards.block_name(number, shards.entry(number)).rpartition("@")[0] == f"{match[1]}:{number}"
    ]
    if len(found) != 1:
        known = ", ".join(f"@{shards.sha256[:8]} ({shards.manifest})" for shards in run.stream.all_shards)
        what = "no such block" if not found else "several such blocks: say which"
        raise ConfigError(f"--block={name}: the shards of {run.path.name} have {what}; they are {known}")
    return {"file": match[1], "manifest": found[0].sha256, "block": number}


def _of_steps(run: RecordedRun, steps: str) -> dict[str, Any]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", steps)
    if not match:
        raise ConfigError(f"--steps={steps}: write A-B, for example 1200-1210, or one step")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise ConfigError(f"--steps={steps}: the first step is 1, and a range does not run backwards")
    samples = run.samples(first)[0], run.samples(last)[-1] + 1
    if samples[0] < run.cursor.samples_done:
        saved = [step for step in run.checkpoints if step >= first]
        raise ConfigError(
            f"--steps={steps}: step {first} is part of the latest checkpoint (step {run.checkpoints[-1]}), and history "
            f"does not change. To train again without it, move the checkpoints of steps {', '.join(map(str, saved))} "
            "away and give the command again; the run then resumes from the checkpoint before"
        )
    return {"steps": [first, last], "samples": list(samples)}


def _shown(line: dict[str, Any]) -> str:
    what = (
        f"document {line['document']}"
        if "document" in line
        else f"steps {line['steps'][0]} to {line['steps'][1]}, samples {line['samples'][0]} to {line['samples'][1] - 1}"
        if "steps" in line
        else f"every document of block {line['block']} in {line['file']}"
    )
    reason = f" ({line['reason']})" if "reason" in line else ""
    return f"{what}, from sample {line['from_sample']} on{reason}"

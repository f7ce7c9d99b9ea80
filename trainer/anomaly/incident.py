"""What a run leaves for people where its numbers went wrong: `incidents/step-<step>.attempt-<attempt>.json` and `.txt`.

Says what was seen, which documents were in the steps, what was done, and what to do next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from conf import schema
from conf.json_lines import writing
from trainer import checkpoint
from trainer.anomaly.trouble import Corrupt, Trouble, Unstable
from trainer.build import Parts
from trainer.explain import RecordedRun, Seen, parts_of_step
from trainer.run import Run

FORMAT = 1
MOST_PARTS = 20_000  # of documents, in a file
_SHOWN = 20  # documents for people to read
_STEPS = 32  # steps before the last that are shown


def write_incident(
    job: schema.Job, run: Run, parts: Parts, trouble: Trouble, outcome: str, remedy: Sequence[str]
) -> tuple[str, list[str]]:
    """Write both files before anything is done about the trouble; one process calls it.

    `outcome` is what is done, in words, `remedy` what people may do, a line each. Returns the file for people, and the
    ids of the documents in it. Raises DataError where the disk does not take it.
    """
    seen, left_out = _documents(job, run, parts, trouble)
    ledger = parts.directory.events()
    document: dict[str, Any] = {
        "format": FORMAT,
        "run_id": parts.directory.run_id,
        "time": time.time(),
        "attempt": run.attempt,
        "step": run.step,
        "kind": "corruption" if isinstance(trouble, Corrupt) else "spike",
        "seen": str(trouble),
        "outcome": outcome,
        "remedy": list(remedy),
        "steps": [taken.to_json() for taken in run.recent[-_STEPS:]],
        "rollbacks": [event for event in ledger if event["event"] == "rollback"],
        "flaws": [
            {"what": flaw.what, "ranks": flaw.ranks, "hosts": [trouble.hosts[rank] for rank in flaw.ranks]}
            for flaw in trouble.flaws
        ]
        if isinstance(trouble, Corrupt)
        else [],
        "documents": [_facts(part) for part in seen],
        "documents_left_out": left_out,
    }
    folder = parts.directory.path / "incidents"
    file = folder / f"{checkpoint.step_name(run.step)}.attempt-{run.attempt}.txt"
    with writing(file):
        folder.mkdir(exist_ok=True)
        file.with_suffix(".json").write_text(json.dumps(document, indent=1))
        file.write_text(_text(document))
    return str(file), [part.document for part in seen]


def _documents(job: schema.Job, run: Run, parts: Parts, trouble: Trouble) -> tuple[list[Seen], bool]:
    """What was read in the steps that were skipped, the longest parts first, and whether that is not all."""
    if not isinstance(trouble, Unstable):
        return [], False
    recorded = RecordedRun(
        path=parts.directory.path,
        stream=parts.stream,
        ramp=parts.ramp,
        micro_batch=job.micro_batch * parts.backend.feeders,
        processes=parts.backend.world.size,
        checkpoints=[],
        cursor=run.cursor,
        last_step=run.step,
        planned_steps=job.steps,
    )
    bad = [taken.step for taken in run.recent if taken.skipped and trouble.first <= taken.step <= trouble.last]
    every = (part for step in bad for part in parts_of_step(recorded, step))
    seen = list(islice(every, MOST_PARTS))
    return sorted(seen, key=lambda part: -part.tokens), next(every, None) is not None


def _facts(part: Seen) -> dict[str, Any]:
    names = ("step", "rank", "document", "source", "url", "tokens", "start", "shard", "block", "sample", "trained")
    return {name: getattr(part, name) for name in names}


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"{document['run_id']}, attempt {document['attempt']}, after step {document['step']}",
        "",
        f"Seen:     {document['seen']}",
        f"Outcome:  {document['outcome']}",
        "",
        *_section("What to do next", (f"  {line}" for line in document["remedy"])),
        *_section("Steps before (limits: what a step was skipped above)", _steps(document["steps"])),
        *_section(
            "Returns to a checkpoint so far",
            (f"  from step {e['from_step']} to {e['to_step']}: {e['why']}" for e in document["rollbacks"]),
        ),
        *_section("Documents in the steps that were skipped, by tokens", _shown(document)),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f"{title}:", *found, ""] if found else []


def _steps(steps: Sequence[dict[str, Any]]) -> Iterable[str]:
    names = ("loss", "loss_limit", "grad_norm", "grad_norm_limit")
    yield "  " + "".join(f"{name:>17}" for name in ("step", *names))
    for step in steps:
        numbers = "".join("             none" if step[name] is None else f"{step[name]:>17.5g}" for name in names)
        yield f"  {step['step']:>17}{numbers}{'  skipped' if step['skipped'] else ''}"


def _shown(document: dict[str, Any]) -> Iterable[str]:
    parts = document["documents"]
    for part in parts[:_SHOWN]:
        yield (
            f"  step {part['step']}  {part['tokens']:>7} tokens  {part['document']}  {part['source']}  {part['url']}"
        )
    if len(parts) > _SHOWN:
        more = " or more" if document["documents_left_out"] else ""
        yield f"  and {len(parts) - _SHOWN}{more} others: see the .json beside this file"

"""`gemcutter explain`: which documents were in a step, and in which steps was a document.

Computed from the order, which is a function; no log of batches is kept. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf import schema
from conf.exits import DONE, ConfigError, DataError
from conf.json_lines import read_lines
from data_pipeline.batch import Cursor
from data_pipeline.disk_cache import DiskCache
from data_pipeline.locate import locate
from data_pipeline.ramp import Ramp
from data_pipeline.reader import Shards
from data_pipeline.stream import TokenStream
from trainer import checkpoint
from trainer.arguments import Arguments
from trainer.run import cursor_of, ramp_of
from trainer.run_directory import checkpoint_places, existing_run, read_config, read_skips


@dataclass(frozen=True)
class RecordedRun:
    """A run directory, read: the order of its samples, and how far it came."""

    path: Path
    stream: TokenStream
    ramp: Ramp
    micro_batch: int
    processes: int
    checkpoints: list[int]  # committed steps
    cursor: Cursor  # of the latest checkpoint; of the start where there is none
    last_step: int  # the last that is saved or logged
    planned_steps: int

    @classmethod
    def open(cls, run: str) -> RecordedRun:
        """By run id or path. Raises DataError where there is none, or what belongs to it is missing or broken."""
        path = existing_run(run)
        document = read_config(path)
        config, data = document["config"], document["config"]["data"]
        stream = TokenStream(
            data["manifest"],
            sequence_length=data["sequence_length"],
            packing=data["packing"],
            window_blocks=data["window_blocks"],
            seed=config["seed"],
            mixture=[schema.Stage(**stage) for stage in data["mixture"]],
            skips=read_skips(path),
            cache=DiskCache(Path(data["cache"]).expanduser(), data["cache_bytes"]),
        )
        places = checkpoint_places(path, document)
        last = checkpoint.newest(places)
        cursor = stream.cursor(0) if last is None else cursor_of(last)
        stream.check(cursor, None if last is None else last.state.get("order"))
        stages = [schema.RampStage(**stage) for stage in config.get("batch_ramp", [])]  # earlier versions had none
        ramp = ramp_of(config["tokens_per_step"], stages, data["sequence_length"])
        if last is not None:
            ramp.check(last.state.get("ramp"), last.step)
        starts = [event for event in read_lines(path / "events.jsonl") if event["event"] == "start"]
        logged = [line["step"] for line in read_lines(path / "metrics.jsonl")]
        return cls(
            path=path,
            stream=stream,
            ramp=ramp,
            micro_batch=config["micro_batch"],
            processes=starts[-1]["processes"] if starts else 1,
            checkpoints=checkpoint.steps_of(places),
            cursor=cursor,
            last_step=max([0 if last is None else last.step, *logged]),
            planned_steps=config["steps"],
        )

    def samples(self, step: int) -> Sequence[int]:
        """The samples of a step; the first is 1."""
        return self.stream.step_samples(self.ramp, step - 1)

    def step_of(self, sample: int) -> tuple[int, int]:
        """The step that reads a sample, and the sample's number within it."""
        step, number = self.ramp.find(self.stream.skips.passed(sample))
        return step + 1, number

    def rank_of(self, number: int) -> tuple[int, int, int]:
        """Rank, micro-batch and row of the sample of this number within a step."""
        share, row = divmod(number, self.micro_batch)
        part, rank = divmod(share, self.processes)
        return rank, part, row


@dataclass(frozen=True)
class Seen:
    """A part of a document in a step."""

    step: int
    rank: int
    micro_batch: int
    row: int
    sample: int
    segment: int
    document: str
    url: str
    source: str
    shard: str
    block: int
    number: int  # of the document within the block
    start: int  # first token read as input
    tokens: int  # inputs, each with a target
    trained: bool  # whether the targets count, or the document is left out


def explain(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = Arguments(prog="gemcutter explain", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run id or run directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--step", type=int, help="which documents were in this step (the first is 1)")
    what.add_argument("--document", help="in which steps was the document of this id")
    parser.add_argument("--rank", type=int, help="only what this process read")
    parser.add_argument("--processes", type=int, help="how many shared a step (default: as last started)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each part of a document")
    chosen = parser.parse_args(arguments)
    run = RecordedRun.open(chosen.run)
    if chosen.processes is not None:
        run = dataclasses.replace(run, processes=_fitting(run, chosen.processes))
    if chosen.rank is not None and not 0 <= chosen.rank < run.processes:
        raise ConfigError(f"--rank={chosen.rank}: {run.processes} processes share a step, 0 to {run.processes - 1}")
    if chosen.step is not None:
        if chosen.step < 1:
            raise ConfigError(f"--step={chosen.step}: the first step is 1")
        _print(parts_of_step(run, chosen.step, chosen.rank), chosen.json)
        return DONE
    seen = parts_of_document(run, chosen.document)
    _print((part for part in seen if chosen.rank in (None, part.rank)), chosen.json)
    if not chosen.json:
        print(history(run, chosen.document, seen))
    return DONE


def parts_of_step(run: RecordedRun, step: int, rank: int | None = None) -> Iterator[Seen]:
    """Every part of a document that a step (or one process in it) reads, in the order of its rows."""
    known: dict[tuple[str, int], tuple[list[str], list[str]]] = {}
    samples = run.samples(step)
    for number in sorted(range(len(samples)), key=run.rank_of):
        if rank in (None, run.rank_of(number)[0]):
            yield from _parts_of_sample(run, step, number, samples[number], known)


def _parts_of_sample(
    run: RecordedRun, step: int, number: int, sample: int, known: dict[tuple[str, int], tuple[list[str], list[str]]]
) -> Iterator[Seen]:
    shards = run.stream.shards_of(sample)
    rank, part, row = run.rank_of(number)
    for segment, span in enumerate(run.stream.spans(sample), start=1):
        ids, urls = _meta(shards, span.block, known)
        yield Seen(
            step=step,
            rank=rank,
            micro_batch=part,
            row=row,
            sample=sample,
            segment=segment,
            document=ids[span.document],
            url=urls[span.document],
            source=shards.source_of(span.block).name,
            shard=shards.shard_of(span.block)[0],
            block=span.block,
            number=span.document,
            start=span.start,
            tokens=span.slots,
            trained=bool(span.weight),
        )


def _meta(
    shards: Shards, block: int, known: dict[tuple[str, int], tuple[list[str], list[str]]]
) -> tuple[list[str], list[str]]:
    key = (shards.sha256, block)
    if key not in known:
        try:
            known[key] = shards.meta(block)
        except DataError as error:  # of a run that passed over a broken block one asks most what its steps held
            print(f"gemcutter explain: {error}", file=sys.stderr)
            unknown = [f"(unreadable {number})" for number in range(len(shards.entry(block).lengths))]
            known[key] = unknown, [""] * len(unknown)
    return known[key]


def parts_of_document(run: RecordedRun, document: str) -> list[Seen]:
    """Every part of a document in the steps that are planned, in the order of the steps.

    Raises ConfigError where no shards of the run hold it.
    """
    before = run.stream.skips.advance(0, run.ramp.before(max(run.planned_steps, run.last_step)))
    known: dict[tuple[str, int], tuple[list[str], list[str]]] = {}
    seen = []
    places = places_of(run, document)
    for shards, block, number in places:
        for sample in run.stream.samples_of(shards.sha256, block, number, before):
            step, within = run.step_of(sample)
            parts = _parts_of_sample(run, step, within, sample, known)
            seen += [part for part in parts if (part.block, part.number) == (block, number)]
    return sorted(seen, key=lambda part: (part.step, part.sample, part.segment))


def places_of(run: RecordedRun, document: str) -> list[tuple[Shards, int, int]]:
    """(shards, block, number within it) of a document. Raises ConfigError where there is none."""
    places = [(shards, *place) for shards in run.stream.all_shards for place in locate(shards, document)]
    if not places:
        where = ", ".join(shards.manifest for shards in run.stream.all_shards)
        raise ConfigError(
            f"no document has the id {document!r} in the shards of {run.path.name} ({where}): ids are those of the "
            "column `id` of the curated text; held-out documents are not among them"
        )
    return places


def history(run: RecordedRun, document: str, seen: Sequence[Seen]) -> str:
    """What a run has to do with a document, in words: steps so far and to come, and the checkpoints that saw it."""
    done = sorted({part.step for part in seen if part.step <= run.last_step and part.trained})
    left_out = sorted({part.step for part in seen if not part.trained})
    coming = sorted({part.step for part in seen if part.step > run.last_step and part.trained})
    saw = [step for step in run.checkpoints if done and step >= done[0]]
    lines = [
        f"{document} in {run.path.name}, which has done {run.last_step} of {run.planned_steps} steps:",
        f"  trained on in steps  {_listed(done)}",
        f"  left out of steps    {_listed(left_out)}",
        f"  to come in steps     {_listed(coming)}",
        f"  checkpoints that saw it  {_listed(saw)}",
    ]
    return "\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _fitting(run: RecordedRun, processes: int) -> int:
    for _, rows in run.ramp.stages:
        if processes < 1 or rows % (processes * run.micro_batch):
            raise ConfigError(
                f"--processes={processes} with micro_batch={run.micro_batch} cannot share the {rows} rows of a step "
                "evenly"
            )
    return processes


def _print(seen: Iterable[Seen], as_json: bool) -> None:
    if as_json:
        for part in seen:
            print(json.dumps(vars(part)))
        return
    columns = ("step", "rank", "micro_batch", "row", "segment", "start", "tokens", "source", "document", "url")
    heads = {"micro_batch": "micro"}
    print("  ".join(f"{heads.get(name, name):>7}" for name in columns[:7]) + "  " + "  ".join(columns[7:]))
    for part in seen:
        values: dict[str, Any] = vars(part)
        left_out = "" if part.trained else "  (left out)"
        numbers = "  ".join(f"{values[name]:>7}" for name in columns[:7])
        print(numbers + "  " + "  ".join(str(values[name]) for name in columns[7:]) + left_out)

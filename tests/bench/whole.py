"""The whole of curation as a job: parts `pipeline` and `scaling` of `curate.py`.

A job is a process of its own (`ours_curate.py`) that `watch.py` looks at; its time is from its start to its end, with
imports, the index of all benchmarks that GEMCUTTER_BENCHMARKS names, and publishing. A short one comes first, so that
nothing is compiled. No CPU tool does all of it, so there are no peers.

Memory is plain resident memory of the process that had most of it, the index of benchmarks in it, which all share.

Reached on two cores of a shared machine, 2026-11-26, with default limits and all 16 benchmarks:

pipeline   347.7 M characters in 100 s by two workers: 3.49 M characters/s (bar 2.5: met), 2.13 M a CPU second, while
           nothing else ran; 3.27 M with little else, 2.2 M and 1.9 M with others on the same cores. One worker took
           178 s beside others. Reading takes 74 s (136 CPU s), the index of benchmarks 14, writing 5.6, start 1.7, all
           others 4. Peak of a worker 1.74 GB (bar 2: met), in the index of benchmarks; 1.2 GB else; the driver 0.55 GB.
           With other limits 14 s, from `judge` on.
scaling    17.4, 69.6 and 278 M characters: 1.02, 1.04 and 1 of the least time a character, 1, 1.05 and 1.03 of
           the least CPU time, both beyond what a few documents take; memory of a worker 1.03 and 1.09 times that for
           one copy, of the driver 1.00 (bars 1.2: met), while nothing else ran.

Of the 8.4 CPU s in which a worker reads 18 M characters, 2.0 are ftfy's search for broken encodings, 1.9 scrubbing, 0.9
word lists, 0.8 language, 0.6 each the lexicon, the search for benchmarks and the columns of rules, 0.14 sketches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shards import order_key
from tests.bench import corpus
from tests.bench.report import Report, Row
from tests.bench.watch import Watched, watch
from tests.data_pipeline.duplicates_tasks import VOCABULARY, sentence

BAR_SPEED, BAR_BYTES, BAR_SCALING = 2.5e6, 2e9, 1.2
SLICE_BYTES = 2 * 2**20  # of a compressed corpus of 75 MB, so that both workers have work to the end
# English has limits of its own.
OTHER_LIMITS = {language: {"gopher": {"min_words": 80}} for language in ("en", "*")}
NO_LIMITS = {
    language: dict.fromkeys(("gopher", "repetition", "c4", "fineweb", "refinedweb")) for language in ("en", "*")
}

SAMPLE_BYTES, LONGEST = 20_000_000, 100_000  # UTF-8 bytes of all documents, characters of one
COPIES = (1, 4, 16)
SCALED_SLICE_BYTES = 2**20  # so many tasks that the last of them matter little
FEW, FEW_SLICE_BYTES = 300, 2**14  # documents of a job that takes hardly more than its start, that of both workers
ALIKE, APART = 100, 8  # of so many words one is exchanged: 0.9 similar, and nearly every line another
_WORDS = re.compile(r"(\s+)")


@dataclass(frozen=True)
class Curation:
    """What was seen of a job."""

    watched: Watched
    summary: dict[str, Any]
    stages: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return self.watched.end - self.watched.begin

    def details(self) -> dict[str, Any]:
        """All figures of it."""
        bounds = [(stage["name"], stage["begin"], stage["end"], stage) for stage in self.stages]
        start = ("start", self.watched.begin, self.stages[0]["begin"], {})
        publishing = ("publish and end", self.stages[-1]["end"], self.watched.end, {})
        return {
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.watched.cpu_seconds(), 2),
            "peak_bytes": self.watched.peaks(),
            "stages": {
                name: {
                    "seconds": round(end - begin, 2),
                    "cpu_seconds": round(self.watched.cpu_seconds(begin, end), 2),
                    "most_bytes": {role: self.watched.most_bytes(role, begin, end) for role in self.watched.peaks()},
                    **{key: stage[key] for key in ("tasks", "reused") if key in stage},
                }
                for name, begin, end, stage in (start, *bounds, publishing)
            },
            "summary": {key: value for key, value in self.summary.items() if key not in ("output", "sources")},
        }


def bar(figure: str, ours: float, most_or_least: float | None = None, *, at_most: bool = False) -> Row:
    """A figure with a bar of its own, not one relative to peers."""
    met = None if most_or_least is None else ours <= most_or_least if at_most else ours >= most_or_least
    return Row(figure, ours, {}, None, most_or_least, met)


def curate(
    folder: Path, name: str, paths: Sequence[Path], workers: int, *more: str, thresholds: Mapping[str, Any] = {}
) -> Curation:
    """Curate the documents of files into `folder / name`, which goes again. Raises Failed where the job fails."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / name
    shutil.rmtree(output, ignore_errors=True)
    overrides = [
        f"curate.sources=[{{kind: local, paths: {json.dumps([*map(str, paths)])}}}]",
        f"curate.output={output.absolute()}",
        f"curate.decontaminate.folder={os.environ['GEMCUTTER_BENCHMARKS']}",
        f"curate.workers={workers}",
        *more,
    ]
    watched = watch(
        [sys.executable, "-m", "tests.bench.ours_curate", json.dumps(thresholds), *overrides], folder / f"{name}.log"
    )
    told = json.loads(watched.output.splitlines()[-1])
    shutil.rmtree(output)
    return Curation(watched, told["summary"], told["stages"])


def warm_up(folder: Path, *more: str) -> None:
    """Compile what is not compiled yet, which is kept on disk: documents that are equal, similar, and share lines."""
    draw = random.Random(0)
    shared, others = " ".join(sentence(draw, 20)), [" ".join(sentence(draw, 200)) for _ in range(3)]
    texts = [*others, others[0], others[1] + " end", *(f"{shared}\n{one}" for one in others)]
    file = folder / "warm-up.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    keep = ("curate.language_confidence=0", "curate.duplicates.repeated_in=2")
    curate(folder, "warm-up", [file], 1, *keep, *more, thresholds=NO_LIMITS)


def pipeline(folder: Path, chosen: argparse.Namespace, report: Report) -> None:
    """The corpus, then again with other limits and what the first curation kept; once for each number of workers."""
    folder /= "pipeline"
    warm_up(folder)
    text = corpus.root() / "text"
    characters, documents = 0, 0
    for document in corpus.every_text(corpus.root()):
        characters, documents = characters + len(document.text), documents + 1
    report.work["pipeline"] = {"documents": documents, "characters": characters, "slice_bytes": SLICE_BYTES}
    seconds: dict[int, float] = {}
    for workers in chosen.workers:
        work = folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        more = [f"curate.work={work.absolute()}", f"curate.slice_bytes={SLICE_BYTES}"]
        first = curate(folder, "text", [text / "*.jsonl.zst"], workers, *more)
        again = curate(folder, "other-limits", [text / "*.jsonl.zst"], workers, *more, thresholds=OTHER_LIMITS)
        shutil.rmtree(work)
        seconds[workers] = first.seconds
        name = f"pipeline, {workers} workers"
        report.details |= {name: first.details(), f"{name}, other limits": again.details()}
        two = workers == 2  # bars are for two
        role = "driver" if workers == 1 else "worker"
        report.rows += [
            bar(f"{name}: characters/s", characters / first.seconds, BAR_SPEED if two else None),
            bar(f"{name}: characters/CPU s", characters / first.watched.cpu_seconds()),
            *(
                bar(f"{name}: peak bytes of a {role}{which}", run.watched.peaks()[role], BAR_BYTES, at_most=True)
                for which, run in (("", first), (", other limits", again))
            ),
            bar(f"{name}: time with other limits", again.seconds / first.seconds),
        ]
    if {1, 2} <= seconds.keys():
        report.rows.append(bar("pipeline: 1 worker's time over that of 2", seconds[1] / seconds[2]))


def scaling(folder: Path, _: argparse.Namespace, report: Report) -> None:
    """A sample once, and 4 and 16 perturbed copies of it: time for each character, and memory.

    No rule drops anything, so that every document comes to the steps that look at all of them. Benchmarks are indexed
    before. Times are beyond that of a job with a few documents: that processes start and load what they need is half of
    the smallest job. All copies are perturbed, the only one, too, so that documents are alike.
    """
    folder /= "scaling"
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    kept = f"curate.work={work.absolute()}"
    warm_up(folder, kept)
    texts = sample()
    runs: dict[int, Curation] = {}
    characters: dict[int, int] = {}
    for times in (0, *COPIES):
        copies = folder / "copies"
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()
        characters[times] = write_copies(copies, texts if times else texts[:FEW], max(times, 1))
        slice_bytes = f"curate.slice_bytes={SCALED_SLICE_BYTES if times else FEW_SLICE_BYTES}"
        more = (kept, slice_bytes, "curate.language_confidence=0")
        runs[times] = curate(folder, f"copies-{times}", [copies / "*.jsonl"], 2, *more, thresholds=NO_LIMITS)
        shutil.rmtree(copies)
        report.details[f"scaling, {times} x"] = {"characters": characters[times], **runs[times].details()}
    shutil.rmtree(work)
    report.work["scaling"] = {"documents": len(texts), "characters": characters, "slice_bytes": SCALED_SLICE_BYTES}
    few = runs.pop(0)
    cost = {
        "time": {times: run.seconds - few.seconds for times, run in runs.items()},
        "CPU time": {times: run.watched.cpu_seconds() - few.watched.cpu_seconds() for times, run in runs.items()},
    }
    for figure, spent in cost.items():
        by_character = {times: seconds / characters[times] for times, seconds in spent.items()}
        for times, value in by_character.items():
            name = f"scaling: {figure} a character, {times} x over the least"
            report.rows.append(bar(name, value / min(by_character.values()), BAR_SCALING, at_most=True))
    for role in ("worker", "driver"):
        peaks = {times: run.watched.peaks()[role] for times, run in runs.items()}
        for times in COPIES[1:]:
            name = f"scaling: peak memory of a {role}, {times} x over 1 x"
            report.rows.append(bar(name, peaks[times] / peaks[1], BAR_SCALING, at_most=True))


def sample() -> list[str]:
    """Documents of the corpus in the order of a hash of their ids."""
    chosen = sorted(
        (order_key(document.id), document.text)
        for document in corpus.every_text(corpus.root())
        if len(document.text) <= LONGEST
    )
    texts, size = [], 0
    for _, text in chosen:
        size += len(text.encode())
        if size > SAMPLE_BYTES:
            break
        texts.append(text)
    return texts


def write_copies(folder: Path, texts: Sequence[str], times: int) -> int:
    """Write so many perturbed copies, a file each; returns the characters of all."""
    characters = 0
    for copy in range(times):
        with (folder / f"{copy:02d}.jsonl").open("w", encoding="utf-8") as file:
            for text in perturbed(texts, copy):
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                characters += len(text)
    return characters


def perturbed(texts: Iterable[str], copy: int) -> Iterator[str]:
    """The texts with exchanged words: in a third of them so few that its copies stay near-duplicates."""
    draw = random.Random(copy)
    for number, text in enumerate(texts):
        step = APART if number % 3 else ALIKE
        pieces = _WORDS.split(text)  # words at even places
        for at in range(2 * draw.randrange(step), len(pieces), 2 * step):
            pieces[at] = draw.choice(VOCABULARY)
        yield "".join(pieces)

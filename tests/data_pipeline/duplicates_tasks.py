"""Documents with near-duplicates made from a seed, and the steps that find them, for tests and the benchmark."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.duplicates import exact, minhash, ranks, steps
from data_pipeline.duplicates.minhash import Shingling
from data_pipeline.engine.stage import Engine, Stage, folder_of, run
from data_pipeline.signals.tokens import Tokens

VOCABULARY = [f"{first}{second}{third}" for first in "bdgklmnprst" for second in "aeiou" for third in "lmnrstxz"]


@dataclass(frozen=True)
class Read:
    """Task: what a task that reads documents leaves behind, of texts and qualities."""

    number: int
    texts: Sequence[str]
    qualities: Sequence[float]
    how: Shingling


def read(task: Read, folder: Path) -> dict[str, Any]:
    """Write fingerprints, bands, sketches and ranks."""
    documents = numbers(task.number, len(task.texts))
    lengths = [len(text) for text in task.texts]
    ranks.write(folder, documents, np.array(task.qualities), np.array(lengths), np.zeros(len(documents)))
    exact.write(folder, documents, exact.fingerprints(task.texts))
    minhash.write(folder, [(documents, minhash.measure(Tokens.of(task.texts), task.how))])
    return {"documents": len(documents)}


def numbers(task: int, count: int) -> np.ndarray:
    return np.uint64(task << 32) + np.arange(count, dtype=np.uint64)


@dataclass(frozen=True)
class Here:
    """An engine that does tasks in this process."""

    def run(self, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        yield from map(work, tasks)


@dataclass(frozen=True)
class Job:
    """Does stages in a folder; keeps the facts of all tasks."""

    root: Path
    engine: Engine = field(default_factory=Here)
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __call__(
        self, name: str, work: Callable[[Any, Path], dict[str, Any]], tasks: Sequence[Any]
    ) -> list[tuple[Path, dict[str, Any]]]:
        facts = run(Stage(name, work, tasks), self.root, self.engine, lambda done, of: None)
        self.facts[name] = facts
        return [(folder_of(self.root / name, number), one) for number, one in enumerate(facts)]


@dataclass(frozen=True)
class Quick:
    """Does tasks in a folder and commits nothing, where a test has many small ones."""

    root: Path
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __call__(
        self, name: str, work: Callable[[Any, Path], dict[str, Any]], tasks: Sequence[Any]
    ) -> list[tuple[Path, dict[str, Any]]]:
        folders = [folder_of(self.root / name, number) for number in range(len(tasks))]
        for folder in folders:
            folder.mkdir(parents=True)
        self.facts[name] = [work(task, folder) for task, folder in zip(tasks, folders, strict=True)]
        return list(zip(folders, self.facts[name], strict=True))


@dataclass(frozen=True)
class Result:
    """Survivors of what goes, by number, and the sizes of their clusters; by `exact` those that go for equal ones."""

    survivor_of: dict[int, int]
    sizes: dict[int, int]
    exact: dict[int, int]
    folders: list[Path]
    removed: list[Path]


def find(
    job: Job | Quick,
    tasks: Sequence[Read],
    *,
    earlier: Sequence[Path] = (),
    first_new: int = 0,
    least: float = 0.75,
    most: int = 2**28,
) -> Result:
    """Read documents and find equal, then similar ones."""
    folders = [folder for folder, _ in job("read", read, tasks)]
    everything = [*earlier, *folders]
    equal = steps.equal(everything, [], first_new, job, most)
    similar = steps.similar(everything, equal.removed, first_new, tasks[0].how.sketch, least, job, most)
    return Result(
        pairs_of(similar.removed, "survivor"),
        pairs_of(similar.kept, "size"),
        pairs_of(equal.removed, "survivor"),
        folders,
        equal.removed + similar.removed,
    )


def pairs_of(paths: Sequence[Path], name: str) -> dict[int, int]:
    found = [np.load(path) for path in paths]
    return {int(key): int(value) for one in found for key, value in zip(one["key"], one[name], strict=True)}


def sentence(draw: random.Random, words: int) -> list[str]:
    """Words of which the first are common, as in a language."""
    return [VOCABULARY[int(len(VOCABULARY) * draw.random() ** 2)] for _ in range(words)]


def edited(draw: random.Random, words: list[str], similarity: float) -> list[str]:
    """The words with substitutions, insertions and deletions, about so many as leave this similarity."""
    words = list(words)
    # An edit changes 5 of n shingles: s = (n - 5 e) / (n + 5 e).
    for _ in range(round(len(words) * (1 - similarity) / (1 + similarity) / 5)):
        at = draw.randrange(len(words))
        kind = draw.choice(("substitute", "insert", "delete"))
        words[at : at + (kind != "insert")] = [] if kind == "delete" else [draw.choice(VOCABULARY)]
    return words


def shingles(words: Sequence[str], length: int = 5) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    """By plain sets of runs of five words."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def planted(draw: random.Random, count: int, low: float, high: float) -> list[tuple[list[str], list[str]]]:
    """Pairs of documents of 60 to 4,000 words whose true similarity lies between two numbers."""
    found: list[tuple[list[str], list[str]]] = []
    while len(found) < count:
        one = sentence(draw, int(60 * (4000 / 60) ** draw.random()))
        other = edited(draw, one, draw.uniform(low, high))
        if low <= jaccard(one, other) <= high:
            found.append((one, other))
    return found

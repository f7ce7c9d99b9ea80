"""Near-duplicates by our steps, as a job would do them: tasks on processes of this machine, files between them.

    python -m tests.bench.ours_dedup DOCUMENTS OUT WORKERS BANDS ROWS RANGE_BYTES

DOCUMENTS is a folder of jsonl files with `text`, one task each; OUT/kept gets the lines that stay. Prints one line of
JSON: what was done, the seconds of each stage, and the most memory of a worker. OUT/removed.npy tells what went. What
was in OUT is gone.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batched import batched
from data_pipeline.duplicates import minhash, ranks, steps
from data_pipeline.duplicates.minhash import Shingling
from data_pipeline.engine import records
from data_pipeline.engine.local import Local
from data_pipeline.engine.stage import Stage, folder_of, run
from data_pipeline.signals.tokens import Tokens

BATCH_CHARACTERS = 1_000_000
LEAST = 0.75


@dataclass(frozen=True)
class Read:
    """Task: measure the documents of a file."""

    number: int
    path: Path
    how: Shingling


def read(task: Read, folder: Path) -> dict[str, Any]:
    """Write bands, sketches and ranks."""
    first = task.number << 32
    characters, measured, lengths = 0, [], []
    for texts in batched(_texts(task.path), len, BATCH_CHARACTERS):
        documents = np.uint64(first + len(lengths)) + np.arange(len(texts), dtype=np.uint64)
        measured.append((documents, minhash.measure(Tokens.of(texts), task.how)))
        lengths += map(len, texts)
        characters += sum(map(len, texts))
    documents = np.uint64(first) + np.arange(len(lengths), dtype=np.uint64)
    ranks.write(folder, documents, np.zeros(len(lengths)), np.array(lengths), np.zeros(len(lengths)))
    facts = {"documents": len(lengths), "characters": characters}
    minhash.write(folder, measured)
    return facts


@dataclass(frozen=True)
class Filter:
    """Task: write the documents of a file that stay."""

    number: int
    path: Path
    removed: Sequence[Path]


def keep(task: Filter, folder: Path) -> dict[str, Any]:
    """Write the lines of a file that stay."""
    mine = task.number << 32, (task.number + 1) << 32
    goes = np.concatenate([records.read([path], *mine, np.load(path, mmap_mode="r").dtype) for path in task.removed])
    rows = set((goes["key"] - np.uint64(mine[0])).tolist())
    with task.path.open("rb") as lines, (folder / "kept.jsonl").open("wb") as kept:
        for row, line in enumerate(lines):
            if row not in rows:
                kept.write(line)
    return {"removed": len(rows)}


def _texts(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def main() -> None:
    """Do what the command line asks for."""
    out = Path(sys.argv[2])
    shutil.rmtree(out, ignore_errors=True)
    files = sorted(Path(sys.argv[1]).iterdir())
    workers, bands, rows, most = map(int, sys.argv[3:])
    how = Shingling(bands=bands, rows=rows)
    seconds: dict[str, float] = {}
    facts: dict[str, list[dict[str, Any]]] = {}

    def do(
        name: str, work: Callable[[Any, Path], dict[str, Any]], tasks: Sequence[Any]
    ) -> list[tuple[Path, dict[str, Any]]]:
        began = time.perf_counter()
        facts[name] = run(Stage(name, work, tasks), out, Local(workers), lambda done, of: None)
        seconds[name] = time.perf_counter() - began
        return [(folder_of(out / name, number), one) for number, one in enumerate(facts[name])]

    began = time.perf_counter()
    done = do("read", read, [Read(number, path, how) for number, path in enumerate(files)])
    found = steps.similar([folder for folder, _ in done], [], 0, how.sketch, LEAST, do, most)
    do("filter", keep, [Filter(number, path, found.removed) for number, path in enumerate(files)])
    total = time.perf_counter() - began
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    np.save(out / "removed.npy", np.concatenate([np.load(path) for path in found.removed]))
    result = {
        "settings": f"word 5-grams, {bands} x {rows}, verified by {how.sketch} hashes at {LEAST}, {workers} workers",
        "seconds": total,
        "cpu_seconds": time.process_time() + children.ru_utime + children.ru_stime,
        "stages": seconds,
        "documents": sum(one["documents"] for one in facts["read"]),
        "characters": sum(one["characters"] for one in facts["read"]),
        "removed": sum(one["removed"] for one in facts["filter"]),
        # One worker is this process itself.
        "peak_bytes": 1024 * max(children.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
        "tasks": {name: len(one) for name, one in facts.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

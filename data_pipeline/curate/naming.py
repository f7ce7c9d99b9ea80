"""Names of documents: unique in a collection, and the same in every run.

Held-out documents are chosen by a hash of these names. What a document states as its id may be stated again: the first
document keeps it, others are called `id~2`, `id~3` in their order. Found by ranges of hashes, so in bounded memory.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.engine import records

NAME = np.dtype([("key", np.uint64), ("document", np.uint64)])  # key: of the wanted name
REPEAT = np.dtype([("key", np.uint64), ("number", np.uint64)])  # key: the document
NAMES, REPEATS = "names.npy", "repeats.npy"
_LOOKS_NUMBERED = re.compile(r"~[0-9]+$")


@dataclass(frozen=True)
class Repeats:
    """Task: find the names of a range that several documents want."""

    names: Sequence[Path]
    first: int
    stop: int


def write(folder: Path, ids: Sequence[str], documents_D: Any) -> None:
    """Write the wanted names of documents."""
    names = np.zeros(len(ids), NAME)
    names["key"] = np.array([_key(wanted) for wanted in ids], np.uint64)
    names["document"] = documents_D
    records.write(folder / NAMES, names)


def repeats(task: Repeats, folder: Path) -> dict[str, Any]:
    """Write the place of each document but the first among those that want the same name: 2, 3 and so on."""
    names = records.read(task.names, task.first, task.stop, NAME)
    names = names[np.lexsort((names["document"], names["key"]))]
    begins = records.begins(names["key"])
    counts = np.diff(np.append(begins, len(names)))
    place = np.arange(len(names)) - np.repeat(begins, counts) + 1
    found = np.zeros(int(np.count_nonzero(place > 1)), REPEAT)
    found["key"], found["number"] = names["document"][place > 1], place[place > 1]
    records.write(folder / REPEATS, found)
    return {"repeats": len(found)}


def named(wanted: str, number: int = 1) -> str:
    """The name of the `number`th document that wants this one.

    A name that ends like a number of ours gets one in any case, so that no two are ever equal.
    """
    return f"{wanted}~{number}" if number > 1 or _LOOKS_NUMBERED.search(wanted) else wanted


def _key(wanted: str) -> int:
    return int.from_bytes(hashlib.sha256(wanted.encode()).digest()[:8], "little")

"""Equal texts, but for Unicode normal form and white space."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.duplicates import ranks, survivors
from data_pipeline.engine import records

FINGERPRINT = np.dtype([("key", np.uint64), ("rest", np.uint64), ("document", np.uint64)])
FILE = "fingerprints.npy"


def fingerprints(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """128 bits of SHA-256 of each text in NFC with every run of white space as one blank (u64 [D, 2])."""
    digests = b"".join(hashlib.sha256(_plain(text)).digest()[:16] for text in texts)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def write(folder: Path, documents_D: npt.NDArray[np.uint64], fingerprints_D2: npt.NDArray[np.uint64]) -> None:
    """Write the fingerprints of documents."""
    marks = np.empty(len(documents_D), FINGERPRINT)
    marks["key"], marks["rest"], marks["document"] = fingerprints_D2[:, 0], fingerprints_D2[:, 1], documents_D
    records.write(folder / FILE, marks)


@dataclass(frozen=True)
class Group:
    """Task: find equal texts whose fingerprints are in a range.

    folders     of the tasks that read documents, earlier ones too
    gone        files of records whose keys are documents that take no part
    """

    folders: Sequence[Path]
    gone: Sequence[Path]
    first_new: int
    first: int
    stop: int


def group(task: Group, folder: Path) -> dict[str, Any]:
    """Write which documents go, and how many each survivor stands for, as `survivors.write` does."""
    marks = records.read([one / FILE for one in task.folders], task.first, task.stop, FINGERPRINT)
    marks = marks[np.lexsort((marks["document"], marks["rest"], marks["key"]))]
    same = (marks["key"][1:] == marks["key"][:-1]) & (marks["rest"][1:] == marks["rest"][:-1])
    groups = np.concatenate([[0], np.cumsum(~same)]) if len(marks) else np.empty(0, np.int64)
    in_group = np.zeros(len(marks), np.bool_)
    in_group[1:] |= same
    in_group[:-1] |= same
    documents, groups = marks["document"][in_group], groups[in_group]
    by_number = np.argsort(documents)
    documents, groups = documents[by_number], groups[by_number]
    here = ~records.among(task.gone, documents)
    documents, groups = documents[here], groups[here]
    best_first = ranks.order(ranks.read([one / ranks.FILE for one in task.folders], documents), groups, task.first_new)
    documents, groups = documents[best_first], groups[best_first]
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    survivors_of = np.repeat(documents[begins], np.diff(np.append(begins, len(documents))))
    goes = (survivors_of != documents) & (documents >= np.uint64(task.first_new))
    return survivors.write(folder, documents[goes], survivors_of[goes])


def _plain(text: str) -> bytes:
    return " ".join(unicodedata.normalize("NFC", text).split()).encode()

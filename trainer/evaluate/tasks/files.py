"""Benchmark files, in the formats their authors publish, as the rows that the tasks of this folder ask for.

Knows nothing of models or scores. Each reader takes the folder of all benchmarks and whatever else the harness hands
to a dataset, and returns one split. A file may lie plain or as .gz.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.exits import DataError

if TYPE_CHECKING:
    from datasets import Dataset

FILES = {
    "piqa": ("piqa/valid.jsonl", "piqa/valid-labels.lst"),
    "arc_easy": ("arc_easy/olmes_test_rc_5shot_requests.jsonl",),
}

_LABELS = ("piqa/valid-labels.lst",)  # numbers alone, which no text can hold

# The dump of requests repeats each item with another id from here on, for scores without the question.
_UNCONDITIONAL = 1_000_000


def missing(task: str, benchmarks: Path) -> list[str]:
    """The files of a task that the folder does not have."""
    return [name for name in FILES[task] if not _find(benchmarks, name).is_file()]


def with_text(task: str, benchmarks: Path) -> dict[str, str]:
    """Name -> sha256 of the files of a task, as they lie in the folder, that hold text: what a model may have read."""
    paths = [_find(benchmarks, name) for name in FILES[task] if name not in _LABELS]
    return {path.relative_to(benchmarks).as_posix(): hashlib.sha256(_read(path)).hexdigest() for path in paths}


def piqa(benchmarks: str, **_: object) -> dict[str, Dataset]:
    """goal, sol1, sol2, label (0 or 1): one JSON object a line, and one label a line in a second file."""
    rows_path, labels_path = (_find(Path(benchmarks), name) for name in FILES["piqa"])
    rows, labels = _read_json_lines(rows_path), _read_lines(labels_path)
    if len(rows) != len(labels):
        raise DataError(
            f"{rows_path} has {len(rows)} items but {labels_path} has {len(labels)} labels: copy both files again"
        )
    docs = []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=1):
        if label.strip() not in ("0", "1"):
            raise DataError(f"{labels_path} line {number}: the label {label!r} is not 0 or 1: copy the file again")
        docs.append(_fields(row, ("goal", "sol1", "sol2"), rows_path, number) | {"label": int(label)})
    return {"validation": _dataset(docs)}


def arc_easy(benchmarks: str, **_: object) -> dict[str, Dataset]:
    """query, choices, gold (index): the OLMES dump of requests, where each item stands once per choice."""
    path = _find(Path(benchmarks), *FILES["arc_easy"])
    docs: dict[int, dict[str, Any]] = {}
    for number, request in enumerate(_read_json_lines(path), start=1):
        request = _fields(request, ("doc_id", "doc"), path, number)
        if request["doc_id"] < _UNCONDITIONAL and request["doc_id"] not in docs:
            docs[request["doc_id"]] = _fields(request["doc"], ("query", "choices", "gold"), path, number)
    return {"test": _dataset(list(docs.values()))}


def _find(benchmarks: Path, name: str) -> Path:
    """The plain file where it exists, else its .gz."""
    plain = benchmarks / name
    return plain if plain.is_file() else plain.with_name(plain.name + ".gz")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the benchmark file {path} cannot be read ({error}): copy it again") from error


def _read_lines(path: Path) -> list[str]:
    data = _read(path)
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"the benchmark file {path} cannot be read ({error}): copy it again") from error
    return text.removesuffix("\n").split("\n") if text else []


def _read_json_lines(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path} line {number} is not JSON ({error}): copy the file again") from error
    return rows


def _fields(row: Any, names: tuple[str, ...], path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict) or any(name not in row for name in names):
        raise DataError(f"{path} line {number} is not an object with {', '.join(names)}: copy the file again")
    return {name: row[name] for name in names}


def _dataset(docs: list[dict[str, Any]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_list(docs)

"""Files of this machine, named by globs. What is in them is the formats' concern."""

from __future__ import annotations

import glob
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conf.exits import ConfigError
from conf.schema import Source
from data_pipeline.document import Record
from data_pipeline.sources import formats
from data_pipeline.sources.slices import LARGEST, SLICE_BYTES, Slice


@dataclass(frozen=True)
class File:
    """A matched file, and the name it goes by in ids and urls: free of this machine's folders."""

    path: Path
    locator: str


def files(source: Source) -> list[File]:
    """The files that the globs match, in the order of the globs and sorted within each, none twice.

    Raises ConfigError where a glob matches no file.
    """
    matched: dict[Path, File] = {}
    for pattern in source.paths:
        expanded = Path(pattern).expanduser()
        paths = sorted(path for path in map(Path, glob.glob(str(expanded), recursive=True)) if path.is_file())
        if not paths:
            raise ConfigError(
                f"curate.sources: the glob {pattern!r} of source {source.name or source.kind!r} matches no file "
                f"(working directory {Path.cwd()}): correct the glob or put the files there"
            )
        for path in paths:
            locator = _below(_above_first_wildcard(expanded), path)
            # Whole paths: who reads may have another working directory.
            file = File(path.absolute(), "file:" + locator.encode(errors="replace").decode())
            matched.setdefault(path.resolve(), file)
    return list(matched.values())


def shown(pattern: str) -> str:
    """A glob as locators show its files: free of this machine's folders."""
    expanded = Path(pattern).expanduser()
    return _below(_above_first_wildcard(expanded), expanded)


def _below(above: Path, path: Path) -> str:
    return path.relative_to(above).as_posix() if path.is_absolute() else path.as_posix()


def _above_first_wildcard(pattern: Path) -> Path:
    """The folder above the deepest folder without a wildcard, so that the latter's name stays in the locators."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder))).parent


def slices(source: Source, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """Every matched file in pieces, in order; a file without a record may have none.

    Each file is looked into, so that a file that is not what its name says stops a long job at its start. Raises
    ConfigError or DataError.
    """
    found = files(source)
    for file in found:
        formats.check(file.path, source.text_field)
    return [slice_ for file in found for slice_ in formats.slices(file.path, file.locator, slice_bytes)]


def tasks(slices: Sequence[Slice], task_bytes: int = SLICE_BYTES) -> list[tuple[Slice, ...]]:
    """Neighbouring slices together until they have so many bytes, for sources of many small files."""
    grouped: list[tuple[Slice, ...]] = []
    group: list[Slice] = []
    size = 0
    for slice_ in slices:
        group.append(slice_)
        size += slice_.bytes
        if size >= task_bytes:
            grouped.append(tuple(group))
            group, size = [], 0
    return [*grouped, tuple(group)] if group else grouped


def records(slice: Slice, text_field: str, largest: int = LARGEST) -> Iterator[Record]:
    """The records of a slice. `url` is the file's and the record's place in it unless the record states its own."""
    for record in formats.records(slice, text_field, largest):
        yield record if record.url else replace(record, url=record.locator)


def read(source: Source) -> Iterator[Record]:
    """Records of every matched file. Raises ConfigError or DataError."""
    for slice_ in slices(source, sys.maxsize):  # one a file: to cut lines, a file must be read to count them
        yield from records(slice_, source.text_field)


def fingerprint(source: Source) -> dict[str, Any]:
    """Number, total bytes and a digest over names and sizes of the matched files: tells another set of inputs apart."""
    sizes = [(file.locator, file.path.stat().st_size) for file in files(source)]
    digest = hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in sizes).encode()).hexdigest()
    return {"files": len(sizes), "bytes": sum(size for _, size in sizes), "sha256": digest}

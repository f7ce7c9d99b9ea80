"""Where documents come from. A source is cut into pieces that are read apart, the same on every run.

A source knows its own file formats; it knows nothing of what makes a good document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

from conf.schema import Source
from data_pipeline.document import Record
from data_pipeline.sources import huggingface, local, python_env
from data_pipeline.sources.slices import LARGEST, SLICE_BYTES, Slice

Piece: TypeAlias = tuple[Slice, ...] | tuple[python_env.File, ...] | huggingface.Shard


def pieces(source: Source, slice_bytes: int = SLICE_BYTES) -> list[Piece]:
    """What there is to read, in order, in pieces of about so many bytes where the source can be cut.

    Raises ConfigError or DataError where something is missing or is not what its name says.
    """
    if source.kind == "python_env":
        return [*python_env.pieces()]
    if source.kind == "huggingface":
        return [*huggingface.pieces(source)]
    return [*local.tasks(local.slices(source, slice_bytes), slice_bytes)]


def records(piece: Piece, source: Source, largest: int = LARGEST) -> Iterator[Record]:
    """The records of a piece, in order; those of all pieces are the same, however the source was cut.

    Raises DataError where what is to be read is gone, or another than it was when it was cut.
    """
    if isinstance(piece, huggingface.Shard):
        yield from huggingface.records(piece, source)
        return
    for one in piece:
        if isinstance(one, Slice):
            yield from local.records(one, source.text_field, largest)
        else:
            yield from python_env.records([one])


def read(source: Source, largest: int = LARGEST) -> Iterator[Record]:
    """Every record of a source. Raises ConfigError or DataError."""
    for piece in pieces(source):
        yield from records(piece, source, largest)


def label(source: Source) -> str:
    """The name of a source in ids, counts and messages."""
    return source.name or source.kind


def origin(source: Source) -> str:
    """What a source reads, for messages."""
    if source.kind == "local":
        return f"paths={source.paths}"
    if source.kind == "huggingface":
        return f"dataset={source.dataset} config={source.config} split={source.split}"
    return "this Python installation"


def without_folders(source: Source) -> Source:
    """The source as it is shown to others: what it names, without the folders of this machine."""
    return replace(source, paths=[*map(local.shown, source.paths)], dataset=huggingface.shown(source.dataset))

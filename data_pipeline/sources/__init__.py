"""Where documents come from. A source is a function that yields records, in the same order on every run.

A source knows its own file formats; it knows nothing of what makes a good document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from conf.schema import Source
from data_pipeline.document import Record
from data_pipeline.sources import huggingface, local, python_env

# Keys are `conf.schema.SOURCE_KINDS`.
SOURCES: dict[str, Callable[[Source], Iterator[Record]]] = {
    "python_env": python_env.read,
    "local": local.read,
    "huggingface": huggingface.read,
}


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

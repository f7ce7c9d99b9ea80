"""A row of named fields to a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.exits import ConfigError
from data_pipeline.document import Record

STATED = ("url", "source", "language", "license")  # fields of a row that a record keeps


def record_of_row(row: dict[str, Any], place: str, text_field: str) -> Record:
    """A row with text as a record; fields of other types than text are not kept (an integer id is)."""
    stated = {name: writable(value) for name in STATED if isinstance(value := row.get(name), str)}
    given = row.get("id")
    identity = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else ""
    return Record(row[text_field], "text", place, id=writable(identity), **stated)


def writable(stated: str) -> str:
    """What a record states, without what cannot be written: lone surrogates and NUL characters."""
    return stated.replace("\0", "").encode("utf-8", "replace").decode()


def no_text_field(path: Path | str, text_field: str, fields: set[str]) -> ConfigError:
    return ConfigError(
        f"{path} has no text in a field {text_field!r}; its fields are {', '.join(sorted(map(str, fields)))}: "
        "set curate.sources[].text_field to the one that holds the text"
    )

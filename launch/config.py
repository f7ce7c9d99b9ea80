"""`gemcutter config [words]`: every key of every job, from the schema itself."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from conf import schema

WIDE = 120  # columns from which on meanings read well beside the keys


def print_keys(words: list[str]) -> int:
    """Print the keys whose name or meaning holds every word; all of them without words."""
    console = Console()
    table = Table("key", "type", "default", "meaning", box=None, pad_edge=False, header_style="bold")
    identity = schema.identity(schema.Job())
    for path, kind, default, doc in keys(schema.Job):
        if not all(word in path or word in doc for word in words):
            continue
        meaning = doc + (" (identity)" if path in identity else "")
        if console.width >= WIDE:
            table.add_row(path, kind, default, meaning)
        else:
            console.print(f"[bold]{path}[/]  {kind}  {default}", highlight=False, soft_wrap=True)
            for line in textwrap.wrap(meaning, console.width - 4):
                console.print(f"    {line}", highlight=False, markup=False)
    if table.row_count:
        console.print(table)
    return 0


def keys(node: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and meaning of each key below a section, in the order of the schema."""
    hints = typing.get_type_hints(node)
    instance = node()
    for item in dataclasses.fields(node):
        default, path = getattr(instance, item.name), prefix + item.name
        if dataclasses.is_dataclass(default):
            yield from keys(type(default), path + ".")
            continue
        choices = schema.CHOICES.get(path)
        yield path, "|".join(choices) if choices else type_name(hints[item.name]), shown(default), item.metadata["doc"]


def type_name(hint: typing.Any) -> str:
    """`int`, `list[str]`, `str or null`."""
    if typing.get_origin(hint) is typing.Union:
        return " or ".join("null" if part is type(None) else type_name(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return f"list of {type_name(typing.get_args(hint)[0])}"
    return str(getattr(hint, "__name__", hint))


def shown(value: object) -> str:
    """A default as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)

"""Files that are one document each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.document import Form, Record
from data_pipeline.sources.magic import check_text, opened
from data_pipeline.sources.slices import Format, Slice, too_large, whole


def _format(form: Form, expected: str) -> Format:
    def check(path: Path, text_field: str) -> None:
        check_text(path, expected)

    def records(slice: Slice, text_field: str, largest: int) -> Iterator[Record]:
        with opened(slice) as file:
            content = file.read(largest + 1) if slice.size <= largest else b""
        if max(slice.size, len(content)) > largest:
            yield too_large(slice.locator)
        else:
            yield Record(content, form, slice.locator)

    return Format(check, whole, records)


TEXT = _format("text", "a text file")
HTML = _format("html", "an HTML file")

"""A record to its text, by what its form says. May take for ever on content that was made to: see `apart.py`."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.document import Record
from data_pipeline.extract.decode import decode
from data_pipeline.extract.html import main_text
from data_pipeline.extract.metadata import long_description
from data_pipeline.extract.python import docstrings
from data_pipeline.extract.repair import repair


class Extracted(NamedTuple):
    """The repaired text of a record, and which extractor found it in an HTML page ("" for other forms)."""

    text: str
    extractor: str = ""


def read(record: Record) -> Extracted | None:
    """The text of a record; None where it holds no document at all (Python source without a docstring).

    Raises UnreadableError where the content is not of its form.
    """
    if record.form == "docstrings":
        text = docstrings(record.content)
        return Extracted(repair(text)) if text else None
    text = record.content if isinstance(record.content, str) else decode(record.content, record.form, record.charset)
    if record.form == "html":
        text, extractor = main_text(text)
        return Extracted(repair(text), extractor)
    if record.form == "metadata":
        text = long_description(text)
        return Extracted(repair(text)) if text else None
    return Extracted(repair(text))


def extract(record: Record) -> str | None:
    """The text that `read` gives, alone."""
    extracted = read(record)
    return None if extracted is None else extracted.text

"""The content of a record to plain, well-encoded text.

Decoding, HTML to text, docstrings out of Python source, the description out of package metadata, and encoding repair,
under limits of time and memory where asked. Knows nothing of quality, languages or where the record came from.
"""

from __future__ import annotations

from data_pipeline.extract.apart import Apart, Outcome, of_this_process
from data_pipeline.extract.decode import decode, looks_binary
from data_pipeline.extract.errors import UnreadableError
from data_pipeline.extract.metadata import long_description
from data_pipeline.extract.plain import Extracted, extract, read
from data_pipeline.extract.python import docstrings
from data_pipeline.extract.repair import repair

__all__ = [
    "Apart",
    "Extracted",
    "Outcome",
    "UnreadableError",
    "decode",
    "docstrings",
    "extract",
    "long_description",
    "looks_binary",
    "of_this_process",
    "read",
    "repair",
]

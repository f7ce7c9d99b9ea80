"""Why a record has no text."""

from __future__ import annotations


class UnreadableError(Exception):
    """The content is not what its form says; the record is dropped as `unreadable`."""


class ParserMemoryError(UnreadableError):
    """The HTML parser gave up, which it does for want of memory only: it takes any text for a page."""

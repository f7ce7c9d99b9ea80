"""Names for documents: unique in a collection, and the same in every run.

Held-out documents are chosen by a hash of these names, so a name depends on the document's own place only.
"""

from __future__ import annotations

import hashlib

from data_pipeline.document import Record


class Identifiers:
    """Gives out names; remembers 16 bytes of each so that none is given twice."""

    def __init__(self) -> None:
        self._given: set[bytes] = set()
        self._repeats: dict[bytes, int] = {}

    def name(self, source: str, record: Record) -> str:
        """The id that the record states, else `<source>/<16 hex of its locator>`; a repeated one ends in `~2`, `~3`.

        The record is that of a `Verdict`.
        """
        wanted = record.id or f"{source}/{_digest(record.locator).hex()[:16]}"
        first, name = _digest(wanted), wanted
        while (mark := _digest(name)) in self._given:
            self._repeats[first] = self._repeats.get(first, 1) + 1
            name = f"{wanted}~{self._repeats[first]}"
        self._given.add(mark)
        return name


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]

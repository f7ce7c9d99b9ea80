"""Exact duplicates: texts that are equal but for Unicode normal form and white space. The first in order survives."""

from __future__ import annotations

import hashlib
import unicodedata


def fingerprint(text: str) -> bytes:
    """SHA-256 (32 bytes) of the text in NFC with every run of white space as one blank."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).encode()).digest()


class ExactDuplicates:
    """The fingerprints seen so far: about 100 bytes of memory a document."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def repeats(self, mark: bytes) -> bool:
        """Whether this fingerprint came before; remembers it."""
        if mark in self._seen:
            return True
        self._seen.add(mark)
        return False

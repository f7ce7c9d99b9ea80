"""What stands in the text for a value: its kind alone, or its kind and a name that the same value always gets.

The name is a keyed hash: without the key nobody finds the value by trying all telephone numbers. It depends on key,
kind and value only, so no order of documents matters.
"""

from __future__ import annotations

import hashlib

from data_pipeline.private.found import PLACEHOLDERS

SHORTEST_KEY = 16  # bytes: what cannot be tried out
_NAME_BYTES = 4  # 32 bits: of 10,000 different values of a kind, two share a name in about one collection of 86


def placeholder(kind: str) -> str:
    """`<EMAIL>`."""
    return f"<{PLACEHOLDERS[kind]}>"


def pseudonym(kind: str, value: str, key: bytes) -> str:
    """`<EMAIL-3f9a12bc>`. Raises ValueError where the key is shorter than 16 bytes."""
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"a key of {len(key)} bytes can be tried out: pseudonyms need one of {SHORTEST_KEY} or more")
    secret = hashlib.sha256(key).digest()
    name = hashlib.blake2b(value.encode(), key=secret, person=kind.encode(), digest_size=_NAME_BYTES).hexdigest()
    return f"<{PLACEHOLDERS[kind]}-{name}>"

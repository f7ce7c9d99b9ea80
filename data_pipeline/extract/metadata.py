"""The description in package metadata."""

from __future__ import annotations

import re


def long_description(metadata: str) -> str:
    """The long description of a distribution's METADATA file: the body below its headers, or its Description header."""
    headers, _, body = metadata.replace("\r\n", "\n").partition("\n\n")
    if body.strip():
        return body
    match = re.search(r"^Description: *(.*(?:\n[ \t|].*)*)", headers, re.MULTILINE)
    return re.sub(r"\n(?: {7}\|| {8})", "\n", match[1]) if match else ""

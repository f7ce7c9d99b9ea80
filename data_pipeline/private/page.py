"""A text as the finders see it, with what is cheap to know about it and tells most of them that they need not look.

Digits, dashes, blanks and signs of every script stand in their ASCII form, letter for letter, and placeholders of an
earlier scrubbing are blotted out. Positions are those of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from data_pipeline.private.found import PLACEHOLDERS

PLACEHOLDER = re.compile(f"<(?:{'|'.join(sorted(set(PLACEHOLDERS.values())))})(?:-[0-9a-f]{{8}})?>")
BLOT = "\0"  # no repaired text holds it, and no pattern matches it

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_BLANKS = "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_INVISIBLE = "\u200b\u200e\u200f\u2060\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
_SIGNS = {"＋": "+", "（": "(", "）": ")", "．": ".", "。": ".", "：": ":", "／": "/", "＠": "@", "﹫": "@", "，": ","}
_DIGITS = {
    character: str(unicodedata.decimal(character))
    for character in map(chr, range(0x80, 0x10000))  # beyond, there are letters of mathematics and dead scripts
    if unicodedata.category(character) == "Nd"
}
_ASCII = {
    **dict.fromkeys(_DASHES, "-"),
    **dict.fromkeys(_BLANKS + _INVISIBLE, " "),
    **_SIGNS,
    **_DIGITS,
}
_FOREIGN = re.compile(f"[{''.join(sorted(_ASCII))}]")

# At least six digits; between two of them blanks, signs and at most one line end.
_GROUP = re.compile("[0-9]+")
_RUN = re.compile(r"[0-9](?:[ .\-/()\t]{0,4}(?:\n[ \t]{0,8}\(?)?[0-9]){5,}")


class Group(NamedTuple):
    """Digits without anything between them."""

    start: int
    end: int
    digits: str


@dataclass(frozen=True)
class Page:
    """What a finder is given.

    text      in its plain form
    held      of the strings that finders asked for those that the text holds
    language  ISO 639-1, found out when it is asked for
    """

    text: str
    held: frozenset[str]
    language: Callable[[], str]

    @cached_property
    def runs(self) -> list[list[Group]]:
        """Every run of at least six digits that may be one number, in its groups."""
        return [
            [Group(one.start(), one.end(), one[0]) for one in _GROUP.finditer(self.text, run.start(), run.end())]
            for run in _RUN.finditer(self.text)
        ]


def plain(text: str) -> str:
    """The text in the form that finders see; of the same length."""
    if not text.isascii():
        text = _FOREIGN.sub(lambda match: _ASCII[match[0]], text)
    if "<" in text:
        text = PLACEHOLDER.sub(lambda match: BLOT * len(match[0]), text)
    return text

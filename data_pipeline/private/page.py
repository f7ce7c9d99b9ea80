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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

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

_GROUP = re.compile("[0-9]+")
_FEWEST_DIGITS = 6  # of a run
_WIDEST_GAP, _WIDEST_INDENT = 4, 8  # characters between two digits of a run: on a line, and behind a line feed
_DIGIT, _GAP, _BLANK = 1, 2, 4
_KINDS = np.zeros(128, np.uint8)
_KINDS[ord("0") : ord("9") + 1] = _DIGIT
_KINDS[[ord(sign) for sign in " .-/()\t"]] = _GAP
_KINDS[[ord(" "), ord("\t")]] |= _BLANK
_LINE_FEED, _BRACKET = ord("\n"), ord("(")


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
        if not _GROUP.search(self.text):
            return []
        points = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return [
            [Group(one.start(), one.end(), one[0]) for one in _GROUP.finditer(self.text, start, end)]
            for start, end in _runs(points, _KINDS).tolist()
        ]


@njit(cache=True)
def _runs(text: npt.NDArray[Any], kinds: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Begin and end of every run of at least six digits, [N, 2]: between two stand some signs, or a line end."""
    found = []
    at = 0
    while at < text.size:
        if text[at] > 127 or kinds[text[at]] != _DIGIT:
            at += 1
            continue
        start, end, digits = at, at, 0
        while at < text.size and text[at] < 128 and kinds[text[at]] == _DIGIT:
            digits += 1
            at += 1
            end = at
            gap = 0
            while at < text.size and gap < _WIDEST_GAP and text[at] < 128 and kinds[text[at]] & _GAP:
                at += 1
                gap += 1
            if at < text.size and text[at] == _LINE_FEED:
                at += 1
                gap = 0
                while at < text.size and gap < _WIDEST_INDENT and text[at] < 128 and kinds[text[at]] & _BLANK:
                    at += 1
                    gap += 1
                if at < text.size and text[at] == _BRACKET:
                    at += 1
        if digits >= _FEWEST_DIGITS:
            found.append((start, end))
    spans = np.empty((len(found), 2), np.int64)
    for n in range(len(found)):
        spans[n, 0], spans[n, 1] = found[n]
    return spans


def plain(text: str) -> str:
    """The text in the form that finders see; of the same length."""
    if not text.isascii():
        text = _FOREIGN.sub(lambda match: _ASCII[match[0]], text)
    if "<" in text:
        text = PLACEHOLDER.sub(lambda match: BLOT * len(match[0]), text)
    return text

"""One tokenisation of a batch of documents, which everything that counts words or lines shares.

Words are those of spaCy's tokenizer for English, by whose words FineWeb's thresholds were found, but for its lists of
abbreviations, units and short forms. White space parts words. Signs before and behind a word are words of their own,
one by one, while full stops in a row stay together, and one behind an initial stays with it; so are those that part two
words: hyphens, slashes, colons and commas between letters, a stop between a small and a capital letter, symbols. Other
signs between letters stay inside.
An apostrophe begins a word of its own with the letters behind it (`don` `'t`), which holds for most languages that have
one; addresses stay whole. Each letter of scripts that put no blanks between words is a word.

Axes: C characters, W words, L lines, D documents; `words_D1[d]:words_D1[d + 1]` are the words of document d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.signals.characters import (
    BLANK,
    CLOSES,
    CURRENCY,
    IDEOGRAPH,
    LOWER,
    OPENS,
    PARTS,
    SIGN,
    UPPER,
    characters,
)

Array: TypeAlias = npt.NDArray[Any]
Positions: TypeAlias = npt.NDArray[np.int32]
Hashes: TypeAlias = npt.NDArray[np.uint64]

ALPHABETIC = 1  # a word holds a letter
SPOKEN = 2  # a word holds a letter or a digit: it is no bare sign
IDEOGRAPHIC = 4  # a word is one letter of a script without blanks

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, and about 2**64 over the golden ratio
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of the finaliser of MurmurHash3
_NEW_LINE, _APOSTROPHE, _RIGHT_QUOTE = ord("\n"), ord("'"), 0x2019
_STOP, _COMMA, _PLUS, _PERCENT, _COLON, _SLASH, _W, _ZERO, _NINE = map(ord, ".,+%:/w09")
_HYPHEN, _DASH, _LONGEST_HYPHEN, _LONGEST_DASH = ord("-"), ord("—"), 3, 2
_HYPHENS = tuple(map(ord, "-–—~"))
_OPERATORS = tuple(map(ord, "+-*^"))  # between digits
_RELATIONS = tuple(map(ord, ":<>=/"))  # before a letter


@dataclass(frozen=True)
class Tokens:
    """Words and lines of documents. Positions count characters of all documents together.

    text_C       code points
    texts_D1     where each document begins, and the last one ends
    starts_W, ends_W   of words
    hashes_W     equal for equal words
    folded_W     equal for words whose letters and digits differ in case, width and accents only
    kinds_W      ALPHABETIC, SPOKEN and IDEOGRAPHIC, as bits
    starts_L, ends_L   of lines, without their line feed; a document has one more line than line feeds
    hashes_L     equal for equal lines
    lines_D1, words_D1   first line and first word of each document
    """

    text_C: npt.NDArray[np.uint32]
    texts_D1: npt.NDArray[np.int64]
    starts_W: Positions
    ends_W: Positions
    hashes_W: Hashes
    folded_W: Hashes
    kinds_W: npt.NDArray[np.uint8]
    words_D1: npt.NDArray[np.int64]
    starts_L: Positions
    ends_L: Positions
    hashes_L: Hashes
    lines_D1: npt.NDArray[np.int64]

    @staticmethod
    def of(texts: Sequence[str]) -> Tokens:
        """Tokenise a batch, of some million characters at most. Texts hold no surrogates (`extract.repair`)."""
        text_C = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        texts_D1 = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=texts_D1[1:])
        table = characters()
        room = text_C.size
        starts_W, ends_W = np.empty(room, np.int32), np.empty(room, np.int32)
        hashes_W, folded_W = np.empty(room, np.uint64), np.empty(room, np.uint64)
        kinds_W = np.empty(room, np.uint8)
        words_D1 = np.zeros(len(texts) + 1, np.int64)
        starts_L, ends_L = np.empty(room + len(texts), np.int32), np.empty(room + len(texts), np.int32)
        hashes_L = np.empty(room + len(texts), np.uint64)
        lines_D1 = np.zeros(len(texts) + 1, np.int64)
        _words(
            text_C, texts_D1, table.kinds, table.alpha, table.folded, table.affixes, table.properties,
            starts_W, ends_W, hashes_W, folded_W, kinds_W, words_D1,
        )  # fmt: skip
        _lines(text_C, texts_D1, starts_L, ends_L, hashes_L, lines_D1)
        words, lines = words_D1[-1], lines_D1[-1]
        return Tokens(
            text_C, texts_D1, starts_W[:words].copy(), ends_W[:words].copy(), hashes_W[:words].copy(),
            folded_W[:words].copy(), kinds_W[:words].copy(), words_D1, starts_L[:lines].copy(), ends_L[:lines].copy(),
            hashes_L[:lines].copy(), lines_D1,
        )  # fmt: skip


@njit(cache=True, inline="always")
def mix(hash_: np.uint64) -> np.uint64:
    """Spread a sum over all bits."""
    hash_ ^= hash_ >> np.uint64(33)
    hash_ *= _MIX
    return hash_ ^ (hash_ >> np.uint64(29))


@njit(cache=True)
def _words(
    text_C: Array, texts_D1: Array, kinds: Array, alpha: Array, folded: Array, affixes: Array, properties: Array,
    starts_W: Array, ends_W: Array, hashes_W: Array, folded_W: Array, kinds_W: Array, words_D1: Array,
) -> None:  # fmt: skip
    count = 0
    for d in range(texts_D1.size - 1):
        at, stop = texts_D1[d], texts_D1[d + 1]
        while at < stop:
            first, kind = at, kinds[text_C[at]]
            at += 1
            if kind == BLANK:
                continue
            if kind == IDEOGRAPH:
                while at < stop and kinds[text_C[at]] != BLANK and folded[text_C[at]] == 0:
                    at += 1  # vowels above and below, as Thai has them
                starts_W[count], ends_W[count] = first, at
                count += 1
                continue
            while at < stop and kinds[text_C[at]] != BLANK and kinds[text_C[at]] != IDEOGRAPH:
                at += 1
            count = _part(text_C, kinds, alpha, affixes, properties, first, at, starts_W, ends_W, count)
        words_D1[d + 1] = count
    for w in range(count):
        exact, fold, flags = np.uint64(0), np.uint64(0), 0
        for at in range(starts_W[w], ends_W[w]):
            character = text_C[at]
            exact = (exact + np.uint64(character) + np.uint64(1)) * _BASE
            if kinds[character] != SIGN:
                flags |= SPOKEN
                if folded[character]:
                    fold = (fold + np.uint64(folded[character]) + np.uint64(1)) * _BASE
                if alpha[character]:
                    flags |= ALPHABETIC
        if kinds[text_C[starts_W[w]]] == IDEOGRAPH:
            flags |= IDEOGRAPHIC
        hashes_W[w], folded_W[w], kinds_W[w] = mix(exact), mix(fold), flags


@njit(cache=True)
def _part(
    text_C: Array, kinds: Array, alpha: Array, affixes: Array, properties: Array, first: int, stop: int,
    starts_W: Array, ends_W: Array, count: int,
) -> int:  # fmt: skip
    """Write the words of what stands between two blanks; returns their number with those before."""
    while first < stop:
        length = _opening(text_C, affixes, first, stop)
        if length == 0:
            break
        starts_W[count], ends_W[count] = first, first + length
        first, count = first + length, count + 1
    closing = stop
    while closing > first and _closes(text_C, alpha, affixes, properties, first, closing - 1):
        closing -= 1
    if first < closing:
        at = closing if _is_address(text_C, first, closing) else first
        while at < closing:
            length = 0
            if kinds[text_C[at]] == SIGN:
                length = _joint(text_C, alpha, affixes, properties, first, at, closing)
            if length and at > first:
                starts_W[count], ends_W[count] = first, at
                first, count = at, count + 1
            if length > 0:
                starts_W[count], ends_W[count] = at, at + length
                first, count = at + length, count + 1
            at += max(length, 1)
        if first < closing:
            starts_W[count], ends_W[count] = first, closing
            count += 1
    first = closing
    while first < stop:
        length = max(1, _stops(text_C, first, stop))
        starts_W[count], ends_W[count] = first, first + length
        first, count = first + length, count + 1
    return count


@njit(cache=True, inline="always")
def _stops(text_C: Array, at: int, stop: int) -> int:
    """How many full stops stand in a row from a place on."""
    end = at
    while end < stop and text_C[end] == _STOP:
        end += 1
    return end - at


@njit(cache=True, inline="always")
def _opening(text_C: Array, affixes: Array, at: int, stop: int) -> int:
    """The characters of a sign that is a word of its own before a word; 0 where there is none."""
    character = text_C[at]
    if character == _STOP:
        stops = _stops(text_C, at, stop)
        return stops if stops > 1 else 0
    if character == _PLUS:
        return 0 if at + 1 < stop and _is_digit(text_C[at + 1]) else 1
    return 1 if affixes[character] & OPENS else 0


@njit(cache=True, inline="always")
def _closes(text_C: Array, alpha: Array, affixes: Array, properties: Array, first: int, at: int) -> bool:
    """Whether the last character of a word is a sign that is a word of its own behind it."""
    character = text_C[at]
    if affixes[character] & CLOSES or at == first:
        return affixes[character] & CLOSES != 0 or character == _STOP
    before = text_C[at - 1]
    if character == _STOP:  # belongs to a letter that stands alone, and to a capital that no other stands before
        initial = at - 1 == first or (properties[before] & UPPER and not properties[text_C[at - 2]] & UPPER)
        return not (alpha[before] and initial)
    return _is_digit(before) and (affixes[character] & CURRENCY != 0 or character in (_PERCENT, _PLUS))


@njit(cache=True, inline="always")
def _is_address(text_C: Array, first: int, stop: int) -> bool:
    for at in range(first, stop - 2):
        if text_C[at] == _COLON and text_C[at + 1] == _SLASH and text_C[at + 2] == _SLASH:
            return True
    return stop - first > 4 and (
        text_C[first] == _W and text_C[first + 1] == _W and text_C[first + 2] == _W and text_C[first + 3] == _STOP
    )


@njit(cache=True)
def _joint(text_C: Array, alpha: Array, affixes: Array, properties: Array, first: int, at: int, stop: int) -> int:
    """The characters of a sign that parts two words; 0 where it parts none, -1 where it begins the second itself."""
    sign = text_C[at]
    if affixes[sign] & PARTS:
        return 1
    if sign == _STOP:
        stops = _stops(text_C, at, stop)
        if stops > 1:
            return stops
    if at == first or at + 1 == stop:
        return 0
    before, after = text_C[at - 1], text_C[at + 1]
    if sign == _STOP:
        return 1 if properties[before] & LOWER and properties[after] & UPPER else 0
    if sign in (_APOSTROPHE, _RIGHT_QUOTE):
        return -1 if alpha[before] and alpha[after] else 0
    if sign == _COMMA:
        return 1 if alpha[before] and alpha[after] else 0
    if not alpha[before] and not _is_digit(before):
        return 0
    if sign in _OPERATORS and _is_digit(before) and (_is_digit(after) or after == _HYPHEN):
        return 1
    if sign in _RELATIONS:
        return 1 if alpha[after] else 0
    if sign in _HYPHENS:
        longest = _LONGEST_HYPHEN if sign == _HYPHEN else _LONGEST_DASH if sign == _DASH else 1
        end = at + 1
        while end < stop and text_C[end] == sign:
            end += 1
        return end - at if end - at <= longest and end < stop and alpha[text_C[end]] else 0
    return 0


@njit(cache=True, inline="always")
def _is_digit(character: int) -> bool:
    return _ZERO <= character <= _NINE


@njit(cache=True)
def _lines(text_C: Array, texts_D1: Array, starts_L: Array, ends_L: Array, hashes_L: Array, lines_D1: Array) -> None:
    count = 0
    for d in range(texts_D1.size - 1):
        starts_L[count] = texts_D1[d]
        line = np.uint64(0)
        for at in range(texts_D1[d], texts_D1[d + 1]):
            if text_C[at] == _NEW_LINE:
                ends_L[count], hashes_L[count] = at, mix(line)
                count += 1
                starts_L[count] = at + 1
                line = np.uint64(0)
            else:
                line = (line + np.uint64(text_C[at]) + np.uint64(1)) * _BASE
        ends_L[count], hashes_L[count] = texts_D1[d + 1], mix(line)
        count += 1
        lines_D1[d + 1] = count

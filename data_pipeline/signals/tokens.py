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
    SPACE,
    UPPER,
    characters,
)
from data_pipeline.signals.hashing import MIX, OF_WORDS

Array: TypeAlias = npt.NDArray[Any]
Positions: TypeAlias = npt.NDArray[np.int32]
Hashes: TypeAlias = npt.NDArray[np.uint64]

ALPHABETIC = 1  # a word holds a letter
SPOKEN = 2  # a word holds a letter or a digit: it is no bare sign
IDEOGRAPHIC = 4  # a word is one letter of a script without blanks

_NEW_LINE, _APOSTROPHE, _RIGHT_QUOTE = ord("\n"), ord("'"), 0x2019
_STOP, _COMMA, _PLUS, _PERCENT, _COLON, _SLASH, _AT, _W, _ZERO, _NINE = map(ord, ".,+%:/@w09")
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
    firsts_L, stops_L  of lines without the blanks at their ends; both the end where there is nothing else
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
    firsts_L: Positions
    stops_L: Positions
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
        firsts_L, stops_L = np.empty(room + len(texts), np.int32), np.empty(room + len(texts), np.int32)
        hashes_L = np.empty(room + len(texts), np.uint64)
        lines_D1 = np.zeros(len(texts) + 1, np.int64)
        _words(
            text_C, texts_D1, table.kinds, table.alpha, table.folded, table.affixes, table.properties,
            starts_W, ends_W, hashes_W, folded_W, kinds_W, words_D1,
        )  # fmt: skip
        _lines(text_C, texts_D1, table.properties, starts_L, ends_L, firsts_L, stops_L, hashes_L, lines_D1)
        words, lines = words_D1[-1], lines_D1[-1]
        return Tokens(
            text_C, texts_D1, starts_W[:words].copy(), ends_W[:words].copy(), hashes_W[:words].copy(),
            folded_W[:words].copy(), kinds_W[:words].copy(), words_D1, starts_L[:lines].copy(), ends_L[:lines].copy(),
            firsts_L[:lines].copy(), stops_L[:lines].copy(), hashes_L[:lines].copy(), lines_D1,
        )  # fmt: skip


@njit(cache=True, inline="always")
def mix(hash_: np.uint64) -> np.uint64:
    """Spread a sum over all bits."""
    hash_ ^= hash_ >> np.uint64(33)
    hash_ *= MIX
    return hash_ ^ (hash_ >> np.uint64(29))


# The loops below hand single characters to functions and no arrays: numba counts references to those at each call,
# which here would take three quarters of the time.


@njit(cache=True)
def _words(
    text_C: Array, texts_D1: Array, kinds: Array, alpha: Array, folded: Array, affixes: Array, properties: Array,
    starts_W: Array, ends_W: Array, hashes_W: Array, folded_W: Array, kinds_W: Array, words_D1: Array,
) -> None:  # fmt: skip
    count = 0
    for d in range(texts_D1.size - 1):
        begin, last = texts_D1[d], texts_D1[d + 1]
        while begin < last:
            first, stop, kind = begin, begin + 1, kinds[text_C[begin]]
            begin = stop
            if kind == BLANK:
                continue
            if kind == IDEOGRAPH:
                while stop < last and kinds[text_C[stop]] != BLANK and folded[text_C[stop]] == 0:
                    stop += 1  # vowels above and below, as Thai has them
                starts_W[count], ends_W[count] = first, stop
                begin, count = stop, count + 1
                continue
            while stop < last and kinds[text_C[stop]] != BLANK and kinds[text_C[stop]] != IDEOGRAPH:
                stop += 1
            begin = stop

            while first < stop:  # signs before the word
                sign, after, length = text_C[first], text_C[first + 1] if first + 1 < stop else 0, 1
                if sign == _STOP and after == _STOP:
                    while first + length < stop and text_C[first + length] == _STOP:
                        length += 1
                elif not _opens(sign, after, affixes[sign]):
                    break
                starts_W[count], ends_W[count] = first, first + length
                first, count = first + length, count + 1
            closing = stop
            while closing > first:
                sign = text_C[closing - 1]
                before = text_C[closing - 2] if closing - 1 > first else 0
                capitals = closing - 2 > first and properties[text_C[closing - 3]] & UPPER != 0
                if not _closes(
                    sign, before, affixes[sign], alpha[before] != 0, properties[before], closing - 2, first, capitals
                ):
                    break
                closing -= 1

            at = first
            for i in range(first + 1, closing - 2):  # an address
                of_page = text_C[i] == _COLON and text_C[i + 1] == _SLASH and text_C[i + 2] == _SLASH
                if of_page or text_C[i] == _AT:
                    at = closing
            if closing - first > 4 and text_C[first] == text_C[first + 1] == text_C[first + 2] == _W:
                at = closing if text_C[first + 3] == _STOP else at
            while at < closing:
                sign, length, end = text_C[at], 0, at + 1
                if kinds[sign] == SIGN:
                    while end < closing and text_C[end] == sign and (sign == _STOP or sign in _HYPHENS):
                        end += 1
                    before = text_C[at - 1] if at > first else 0
                    after = text_C[end] if end < closing else 0
                    length = _joint(
                        sign, before, after, end - at, affixes[sign], alpha[before] != 0, alpha[after] != 0,
                        properties[before], properties[after],
                    )  # fmt: skip
                if length and at > first:
                    starts_W[count], ends_W[count] = first, at
                    first, count = at, count + 1
                if length > 0:
                    starts_W[count], ends_W[count] = at, at + length
                    first, count = at + length, count + 1
                at = at + length if length > 0 else end
            if first < closing:
                starts_W[count], ends_W[count] = first, closing
                count += 1

            first = closing
            while first < stop:  # signs behind the word
                length = 1
                while text_C[first] == _STOP and first + length < stop and text_C[first + length] == _STOP:
                    length += 1
                starts_W[count], ends_W[count] = first, first + length
                first, count = first + length, count + 1
        words_D1[d + 1] = count
    for w in range(count):
        exact, fold, flags = np.uint64(0), np.uint64(0), 0
        for at in range(starts_W[w], ends_W[w]):
            character = text_C[at]
            exact = (exact + np.uint64(character) + np.uint64(1)) * OF_WORDS
            if kinds[character] != SIGN:
                flags |= SPOKEN
                if folded[character]:
                    fold = (fold + np.uint64(folded[character]) + np.uint64(1)) * OF_WORDS
                if alpha[character]:
                    flags |= ALPHABETIC
        if kinds[text_C[starts_W[w]]] == IDEOGRAPH:
            flags |= IDEOGRAPHIC
        hashes_W[w], folded_W[w], kinds_W[w] = mix(exact), mix(fold), flags


@njit(cache=True, inline="always")
def _opens(sign: int, after: int, affix: int) -> bool:
    """Whether a sign is a word of its own before a word."""
    return affix & OPENS != 0 or (sign == _PLUS and not _is_digit(after))


@njit(cache=True, inline="always")
def _closes(
    sign: int, before: int, affix: int, letter: bool, properties: int, place: int, first: int, capitals: bool
) -> bool:
    """Whether a sign is a word of its own behind a word, whose last character `before` stands at a place."""
    if affix & CLOSES:
        return True
    if sign == _STOP:  # belongs to a letter that stands alone, and to a capital that no other stands before
        return not (letter and (place == first or (properties & UPPER != 0 and not capitals)))
    return _is_digit(before) and (affix & CURRENCY != 0 or sign in (_PERCENT, _PLUS))


@njit(cache=True, inline="always")
def _joint(
    sign: int, before: int, after: int, times: int, affix: int, letter_before: bool, letter_after: bool,
    properties_before: int, properties_after: int,
) -> int:  # fmt: skip
    """The characters of a sign that parts two words, where it stands so many times; 0 where it parts none, -1 where it
    begins the second itself."""
    if affix & PARTS:
        return 1
    if sign == _STOP:
        parts = times > 1 or (properties_before & LOWER != 0 and properties_after & UPPER != 0)
        return times if parts else 0
    if sign in (_APOSTROPHE, _RIGHT_QUOTE):
        return -1 if letter_before and letter_after else 0
    if sign == _COMMA:
        return 1 if letter_before and letter_after else 0
    if not letter_before and not _is_digit(before):
        return 0
    if sign in _OPERATORS and _is_digit(before) and (_is_digit(after) or times > 1 or after == _HYPHEN):
        return 1
    if sign in _RELATIONS:
        return 1 if letter_after else 0
    if sign in _HYPHENS and letter_after:
        longest = _LONGEST_HYPHEN if sign == _HYPHEN else _LONGEST_DASH if sign == _DASH else 1
        return times if times <= longest else 0
    return 0


@njit(cache=True, inline="always")
def _is_digit(character: int) -> bool:
    return _ZERO <= character <= _NINE


@njit(cache=True)
def _lines(
    text_C: Array, texts_D1: Array, properties: Array, starts_L: Array, ends_L: Array, firsts_L: Array, stops_L: Array,
    hashes_L: Array, lines_D1: Array,
) -> None:  # fmt: skip
    count = 0
    for d in range(texts_D1.size - 1):
        starts_L[count] = texts_D1[d]
        line = np.uint64(0)
        for at in range(texts_D1[d], texts_D1[d + 1] + 1):
            if at == texts_D1[d + 1] or text_C[at] == _NEW_LINE:
                first, stop = starts_L[count], at
                while first < stop and properties[text_C[first]] & SPACE:
                    first += 1
                while first < stop and properties[text_C[stop - 1]] & SPACE:
                    stop -= 1
                firsts_L[count], stops_L[count], ends_L[count], hashes_L[count] = first, stop, at, mix(line)
                count += 1
                if at < texts_D1[d + 1]:
                    starts_L[count] = at + 1
                line = np.uint64(0)
            else:
                line = (line + np.uint64(text_C[at]) + np.uint64(1)) * OF_WORDS
        lines_D1[d + 1] = count

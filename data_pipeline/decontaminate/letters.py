"""Texts as their letters and digits alone, in one case and without accents: what stands between them does not count.

A word here is a run of letters between blanks or signs; where words begin matters, where they end follows from it.
Numbers and letters that count lines or choices (`1.`, `b)`, `Q:`) are left out where they begin a line, numbers only
where they count on or no sentence runs on from the line before. The hash of any stretch is one difference of the hashes
of what stands before its ends, so it does not depend on how the stretch was cut into words: `well-known`, `well known`
and `wellknown` hold the same letters.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit

from data_pipeline.signals.characters import BLANK, IDEOGRAPH, SIGN
from data_pipeline.signals.hashing import OF_STRETCHES, Array
from data_pipeline.signals.tokens import mix

Number: TypeAlias = "int | np.signedinteger[Any]"  # as compiled loops have them

LONGEST = 1024  # letters of a stretch that is looked up

_NEW_LINE, _ZERO, _NINE = ord("\n"), ord("0"), ord("9")
_BEHIND_MARKERS = tuple(map(ord, ".):"))
_BEFORE_MARKERS = tuple(map(ord, "(["))
_LINE_MARKS = tuple(map(ord, ">*-•#|/"))
_LONGEST_NUMBER = 2


def powers() -> Array:
    """Powers of the base of the hash, one for each length of a stretch."""
    return np.concatenate([np.ones(1, np.uint64), np.full(LONGEST, OF_STRETCHES)]).cumprod(dtype=np.uint64)


@njit(cache=True, inline="always")
def stretch(hashes_L1: Array, powers_L: Array, first: Number, length: Number) -> np.uint64:
    """The hash of so many letters from one on."""
    return mix(hashes_L1[first + length] - hashes_L1[first] * powers_L[length])


@njit(cache=True)
def spell(
    text_C: Array, start: int, stop: int, kinds: Array, folded: Array, joined: bool,
    at_L: Array, hashes_L1: Array, begins_L1: Array, words_W1: Array,
) -> tuple[int, int]:  # fmt: skip
    """Write the letters of `text_C[start:stop]`; returns how many letters and words there are.

    at_L        the place of each letter in the text
    hashes_L1   of all letters before
    begins_L1   1 where a word begins, and behind the last letter
    words_W1    the first letter of each word, and behind the last one
    joined      whether signs do not part words
    """
    letters, words, at = 0, 0, start
    between, line_begins, ended = True, True, True
    number: Number = np.int64(0)
    hashes_L1[0] = 0
    while at < stop:
        character = text_C[at]
        kind = kinds[character]
        if kind in (BLANK, SIGN):
            between = between or kind == BLANK or not joined
            ended = ended or kind == SIGN or (line_begins and character == _NEW_LINE)
            line_begins = line_begins or character == _NEW_LINE
            at += 1
            continue
        if line_begins:
            line_begins = False
            marker, number = _marker(text_C, start, at, stop, kinds, ended, number)
            if marker:
                at += marker
                between = True
                continue
        ended = False
        letter = folded[character]
        if letter:
            begins = between or kind == IDEOGRAPH
            if begins:
                words_W1[words] = letters
                words += 1
            begins_L1[letters] = begins
            at_L[letters] = at
            hashes_L1[letters + 1] = (hashes_L1[letters] + np.uint64(letter)) * OF_STRETCHES
            letters += 1
            between = kind == IDEOGRAPH
        at += 1
    words_W1[words] = letters
    begins_L1[letters] = 1
    return letters, words


@njit(cache=True, inline="always")
def _marker(
    text_C: Array, start: int, at: int, stop: int, kinds: Array, ended: bool, number: Number
) -> tuple[int, Number]:  # fmt: skip
    """The characters of a number or letter that counts lines or choices, with the sign behind it; 0 where none is.
    And the number, else the one before."""
    if at > start and kinds[text_C[at - 1]] != BLANK and text_C[at - 1] not in _BEFORE_MARKERS:
        return 0, number
    end = at
    digits, value = True, np.int64(0)
    while end < stop and end - at <= _LONGEST_NUMBER and kinds[text_C[end]] != BLANK and kinds[text_C[end]] != SIGN:
        digits = digits and _ZERO <= text_C[end] <= _NINE
        value = 10 * value + np.int64(text_C[end]) - _ZERO
        end += 1
    if digits and not ended and value != number + 1:
        return 0, number
    if end - at > (_LONGEST_NUMBER if digits else 1) or end >= stop or text_C[end] not in _BEHIND_MARKERS:
        return 0, number
    if end + 1 < stop and kinds[text_C[end + 1]] != BLANK:
        return 0, number
    return end + 1 - at, value if digits else number


@njit(cache=True)
def signed(text_C: Array, at: int, stop: int, kinds: Array, folded: Array, count: Number) -> tuple[np.uint64, int]:
    """The hash of so many characters from one on that are not blank, signs and all, and how many there were.

    Signs that mark a line (`> `, `* `) are left out.
    """
    hash_, found = np.uint64(0), 0
    line_begins = False
    while at < stop and found < count:
        character = text_C[at]
        at += 1
        if kinds[character] == BLANK:
            line_begins = line_begins or character == _NEW_LINE
            continue
        marks = line_begins and character in _LINE_MARKS and (at == stop or kinds[text_C[at]] == BLANK)
        line_begins = False
        if not marks and (kinds[character] == SIGN or folded[character]):
            hash_ = (hash_ + np.uint64(character if kinds[character] == SIGN else folded[character])) * OF_STRETCHES
            found += 1
    return mix(hash_), found

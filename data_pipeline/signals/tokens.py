"""One tokenisation of a batch of documents, which everything that counts words or lines shares.

A word is a run of letters and digits. A full stop, an underscore or an at sign between two of them stays inside, as
does a comma between digits; an apostrophe begins a word of its own with the letters after it (`don` `'t`). A run of one
sign is a word, and so is each letter of scripts that put no blanks between words. This is close to what spaCy's
tokenizer does to English, with which FineWeb's thresholds were found.

Axes: C characters, W words, L lines, D documents; `words_D1[d]:words_D1[d + 1]` are the words of document d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.signals.characters import BLANK, IDEOGRAPH, LETTER, SIGN, characters

Array: TypeAlias = npt.NDArray[Any]
Positions: TypeAlias = npt.NDArray[np.int32]
Hashes: TypeAlias = npt.NDArray[np.uint64]

ALPHABETIC = 1  # a word holds a letter
SPOKEN = 2  # a word holds a letter or a digit: it is no bare sign
IDEOGRAPHIC = 4  # a word is one letter of a script without blanks

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, and about 2**64 over the golden ratio
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # of the finaliser of MurmurHash3
_NEW_LINE, _APOSTROPHE, _RIGHT_QUOTE = ord("\n"), ord("'"), 0x2019
_COMMA, _STOP, _UNDERSCORE, _AT, _ZERO, _NINE = map(ord, ",._@09")


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
            text_C, texts_D1, table.kinds, table.alpha, table.folded,
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
    text_C: Array, texts_D1: Array, kinds: Array, alpha: Array, folded: Array,
    starts_W: Array, ends_W: Array, hashes_W: Array, folded_W: Array, kinds_W: Array, words_D1: Array,
) -> None:  # fmt: skip
    count = 0
    for d in range(texts_D1.size - 1):
        at, stop = texts_D1[d], texts_D1[d + 1]
        while at < stop:
            if kinds[text_C[at]] == BLANK:
                at += 1
                continue
            first, at = at, _end_of_word(text_C, kinds, folded, at, stop)
            exact, fold, flags = np.uint64(0), np.uint64(0), 0
            for i in range(first, at):
                character = text_C[i]
                exact = (exact + np.uint64(character) + np.uint64(1)) * _BASE
                if kinds[character] != SIGN:
                    flags |= SPOKEN
                    if folded[character]:
                        fold = (fold + np.uint64(folded[character]) + np.uint64(1)) * _BASE
                    if alpha[character]:
                        flags |= ALPHABETIC
            if kinds[text_C[first]] == IDEOGRAPH:
                flags |= IDEOGRAPHIC
            starts_W[count], ends_W[count] = first, at
            hashes_W[count], folded_W[count] = mix(exact), mix(fold)
            kinds_W[count] = flags
            count += 1
        words_D1[d + 1] = count


@njit(cache=True, inline="always")
def _end_of_word(text_C: Array, kinds: Array, folded: Array, first: int, stop: int) -> int:
    kind, at = kinds[text_C[first]], first + 1
    if kind == IDEOGRAPH:
        while at < stop and folded[text_C[at]] == 0:  # vowels above and below, as Thai has them
            at += 1
        return at
    if kind == SIGN and not (_begins_letters(text_C[first]) and at < stop and kinds[text_C[at]] == LETTER):
        while at < stop and text_C[at] == text_C[first]:
            at += 1
        return at
    while at < stop:
        if kinds[text_C[at]] != LETTER:
            if at + 1 >= stop or kinds[text_C[at + 1]] != LETTER or not _inner(text_C, at):
                return at
            at += 1
        at += 1
    return at


@njit(cache=True, inline="always")
def _begins_letters(character: int) -> bool:
    return character in (_APOSTROPHE, _RIGHT_QUOTE)


@njit(cache=True, inline="always")
def _inner(text_C: Array, at: int) -> bool:
    """Whether a sign between two letters or digits is part of their word."""
    sign = text_C[at]
    if sign == _COMMA:
        return _is_digit(text_C[at - 1]) and _is_digit(text_C[at + 1])
    return sign in (_STOP, _UNDERSCORE, _AT)


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

"""Fixed phrases in a text, met whatever the case of their Latin letters: code points in a table for compiled loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from data_pipeline.signals.hashing import Array

ASCII = 128
_UPPER_A, _UPPER_Z, _TO_LOWER = ord("A"), ord("Z"), ord("a") - ord("A")


@dataclass(frozen=True)
class Phrases:
    """P phrases in ASCII: letters [P, longest], 0 behind their end; and the bits of those with a letter in the first
    place, and in the second, so that few places of a text need a closer look."""

    letters_PL: Array
    first_A: Array
    second_A: Array

    @staticmethod
    def of(phrases: Sequence[str]) -> Phrases:
        """At most 64 phrases of two letters or more, in lower case."""
        letters_PL = np.zeros((len(phrases), max(map(len, phrases)) + 1), np.uint32)
        first_A, second_A = np.zeros(ASCII, np.uint64), np.zeros(ASCII, np.uint64)
        for p, phrase in enumerate(phrases):
            letters_PL[p, : len(phrase)] = list(phrase.encode("ascii"))
            first_A[letters_PL[p, 0]] |= np.uint64(1 << p)
            second_A[letters_PL[p, 1]] |= np.uint64(1 << p)
        return Phrases(letters_PL, first_A, second_A)


@njit(cache=True, inline="always")
def lower(character: int) -> int:
    """The lower case of a Latin letter without accent."""
    return character + _TO_LOWER if _UPPER_A <= character <= _UPPER_Z else character


@njit(cache=True)
def matched(text_C: Array, at: int, stop: int, letters_L: Array, exactly: bool) -> int:
    """How many characters a phrase takes from a place on; 0 where it does not stand there whole."""
    length = 0
    while letters_L[length]:
        if at + length >= stop:
            return 0
        character = text_C[at + length]
        if character != letters_L[length] and (exactly or lower(character) != letters_L[length]):
            return 0
        length += 1
    return length


@njit(cache=True)
def standing(text_C: Array, at: int, stop: int, letters_PL: Array, candidates: np.uint64) -> np.uint64:
    """The bits of those candidates that stand at a place."""
    found = np.uint64(0)
    for p in range(letters_PL.shape[0]):
        bit = np.uint64(1) << np.uint64(p)
        if candidates & bit and matched(text_C, at, stop, letters_PL[p], False):
            found |= bit
    return found

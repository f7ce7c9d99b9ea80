"""What the repetition rules of Gopher count (Rae et al. 2021, arXiv:2112.11446, table A1), as shares of a text.

Counted as datatrove does. A line or a paragraph that was met before is a duplicate; lines end at line feeds, paragraphs
at two or more of them. The most frequent n-gram is measured with a blank between its words. Duplicate n-grams are
counted greedily: after one that was met before, the next begins behind it, so that no character counts twice.
Scripts without blanks have no words to count: two of their letters are taken for one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from data_pipeline.signals.gopher import LETTERS_PER_WORD
from data_pipeline.signals.hashing import OF_RUNS, Array, nonzero, place, room
from data_pipeline.signals.tokens import Tokens, mix

TOP = (2, 3, 4)  # words of an n-gram
DUPLICATE = (5, 6, 7, 8, 9, 10)


def measure(tokens: Tokens, unspaced_D: Array) -> dict[str, Array]:
    """A column for each rule, between 0 and 1; an n-gram with its blanks may come out above."""
    lines = _lines(tokens.starts_L, tokens.ends_L, tokens.hashes_L, tokens.lines_D1)
    sizes = np.array([*TOP, *DUPLICATE], np.int64)
    letters_D = np.where(unspaced_D, LETTERS_PER_WORD, 1)
    grams_GD = _grams(
        tokens.starts_W, tokens.ends_W, tokens.hashes_W, tokens.words_D1, sizes, len(TOP), letters_D,
    )  # fmt: skip
    characters = np.maximum(np.diff(tokens.texts_D1), 1)
    names = [f"top_{n}_gram" for n in TOP] + [f"duplicate_{n}_grams" for n in DUPLICATE]
    return {
        "duplicate_paragraphs": (lines[0] / np.maximum(lines[1], 1)).astype(np.float32),
        "duplicate_paragraph_characters": (lines[2] / characters).astype(np.float32),
        "duplicate_lines": (lines[3] / np.maximum(lines[4], 1)).astype(np.float32),
        "duplicate_line_characters": (lines[5] / characters).astype(np.float32),
        **{name: (grams_D / characters).astype(np.float32) for name, grams_D in zip(names, grams_GD, strict=True)},
    }


@njit(cache=True)
def _lines(starts_L: Array, ends_L: Array, hashes_L: Array, lines_D1: Array) -> Array:
    """[6, documents]: duplicate paragraphs, paragraphs, characters of the duplicates; the same of lines."""
    D = lines_D1.size - 1
    counts = np.zeros((6, D))
    table = np.zeros(room(np.diff(lines_D1).max() if D else 0), np.uint64)
    for d in range(D):
        first, stop = lines_D1[d], lines_D1[d + 1]
        places = room(stop - first)
        table[:places] = 0
        for line in range(first, stop):
            if ends_L[line] == starts_L[line]:
                continue
            hash_ = nonzero(hashes_L[line])
            at = place(table, places, hash_)
            counts[4, d] += 1
            if table[at]:
                counts[3, d] += 1
                counts[5, d] += ends_L[line] - starts_L[line]
            table[at] = hash_
        table[:places] = 0
        line = first
        while line < stop:
            if ends_L[line] == starts_L[line]:
                line += 1
                continue
            begin, hash_ = starts_L[line], np.uint64(0)
            while line < stop and ends_L[line] > starts_L[line]:
                hash_ = (hash_ + hashes_L[line]) * OF_RUNS
                line += 1
            hash_ = nonzero(mix(hash_))
            at = place(table, places, hash_)
            counts[1, d] += 1
            if table[at]:
                counts[0, d] += 1
                counts[2, d] += ends_L[line - 1] - begin
            table[at] = hash_
    return counts


@njit(cache=True)
def _grams(
    starts_W: Array, ends_W: Array, hashes_W: Array, words_D1: Array, sizes: Array, tops: int, letters_D: Array
) -> Array:
    """[sizes, documents]: characters of the most frequent n-gram, all its places together, for the first `tops` sizes;
    for the others characters of n-grams that were met before."""
    D = words_D1.size - 1
    counts = np.zeros((sizes.size, D))
    most = np.diff(words_D1).max() if D else 0
    table = np.zeros(room(most), np.uint64)
    times, firsts = np.zeros(table.size, np.int32), np.zeros(table.size, np.int32)
    hashes, lengths = np.zeros(most + 1, np.uint64), np.zeros(most + 1, np.int64)
    for d in range(D):
        first = words_D1[d]
        words = words_D1[d + 1] - first
        for w in range(words):  # of all words before each, so that the hash and length of a run are one difference
            hashes[w + 1] = hashes[w] * OF_RUNS + hashes_W[first + w]
            lengths[w + 1] = lengths[w] + ends_W[first + w] - starts_W[first + w]
        for g in range(sizes.size):
            size = sizes[g] * letters_D[d]
            if words < size:
                continue
            power = np.uint64(1)
            for _ in range(size):
                power *= OF_RUNS
            places = room(words)
            table[:places] = 0
            if g < tops:
                blanks = sizes[g] - 1 if letters_D[d] == 1 else 0
                counts[g, d] = _top(hashes, lengths, words, size, blanks, power, table, places, times, firsts)
            else:
                counts[g, d] = _duplicates(hashes, lengths, words, size, power, table, places)
    return counts


@njit(cache=True, inline="always")
def _top(
    hashes: Array, lengths: Array, words: int, size: int, blanks: int, power: np.uint64,
    table: Array, places: int, times: Array, firsts: Array,
) -> int:  # fmt: skip
    """Characters of the most frequent run, blanks included, times how often it occurs; of several the first."""
    most, first = 0, 0
    for w in range(words - size + 1):
        hash_ = nonzero(mix(hashes[w + size] - hashes[w] * power))
        at = place(table, places, hash_)
        if table[at]:
            times[at] += 1
        else:
            table[at], times[at], firsts[at] = hash_, 1, w
        if times[at] > most or (times[at] == most and firsts[at] < first):
            most, first = times[at], firsts[at]
    return most * (lengths[first + size] - lengths[first] + blanks)


@njit(cache=True, inline="always")
def _duplicates(
    hashes: Array, lengths: Array, words: int, size: int, power: np.uint64, table: Array, places: int
) -> int:
    """Characters of runs that were met before, none counted twice."""
    characters, w = 0, 0
    while w <= words - size:
        hash_ = nonzero(mix(hashes[w + size] - hashes[w] * power))
        at = place(table, places, hash_)
        if table[at]:
            characters += lengths[w + size] - lengths[w]
            w += size
        else:
            table[at] = hash_
            w += 1
    return characters

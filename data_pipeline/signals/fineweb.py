"""What the rules of FineWeb count (Penedo et al. 2024, arXiv:2406.17557, section 3.6), over lines that are not blank.

Counted as datatrove does: a line ends in punctuation only where nothing follows it, not even a blank.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from data_pipeline.signals.characters import TERMINAL, characters
from data_pipeline.signals.gopher import LETTERS_PER_WORD
from data_pipeline.signals.hashing import Array, nonzero, place, room
from data_pipeline.signals.tokens import IDEOGRAPHIC, Tokens

SHORT_LINE = 30  # characters


def measure(tokens: Tokens, unspaced_D: Array) -> dict[str, Array]:
    """A column for each rule; NaN where a document holds blank lines only."""
    lines, ended, short, repeated = _count(
        tokens.text_C, tokens.starts_L, tokens.ends_L, tokens.firsts_L, tokens.hashes_L, tokens.lines_D1,
        characters().properties,
    )  # fmt: skip
    line_feeds = np.diff(tokens.lines_D1) - 1
    counted = np.where(lines > 0, lines, np.nan)
    return {
        "line_punctuation": (ended / counted).astype(np.float32),
        "short_lines": (short / counted).astype(np.float32),
        "repeated_line_characters": (repeated / np.maximum(np.diff(tokens.texts_D1) - line_feeds, 1)).astype(
            np.float32
        ),
        "line_feeds": (line_feeds / np.maximum(_words(tokens, unspaced_D), 1)).astype(np.float32),
    }


def _words(tokens: Tokens, unspaced_D: Array) -> Array:
    """Words and signs; of scripts without blanks two letters are taken for a word."""
    ideographs = np.zeros(tokens.hashes_W.size + 1, np.int64)
    np.cumsum((tokens.kinds_W & IDEOGRAPHIC) != 0, out=ideographs[1:])
    letters = np.diff(ideographs[tokens.words_D1])
    fewer = np.where(unspaced_D, letters - letters // LETTERS_PER_WORD, 0)
    return np.asarray(np.diff(tokens.words_D1) - fewer)


@njit(cache=True)
def _count(
    text_C: Array, starts_L: Array, ends_L: Array, firsts_L: Array, hashes_L: Array, lines_D1: Array, properties: Array
) -> Array:  # fmt: skip
    """[4, documents]: lines, lines that end in punctuation, short lines, characters of lines that were met before."""
    D = lines_D1.size - 1
    counts = np.zeros((4, D))
    table = np.zeros(room(np.diff(lines_D1).max() if D else 0), np.uint64)
    for d in range(D):
        places = room(lines_D1[d + 1] - lines_D1[d])
        table[:places] = 0
        for line in range(lines_D1[d], lines_D1[d + 1]):
            stop = ends_L[line]
            if firsts_L[line] == stop:
                continue
            length = stop - starts_L[line]
            counts[0, d] += 1
            counts[1, d] += (properties[text_C[stop - 1]] & TERMINAL) != 0
            counts[2, d] += length <= SHORT_LINE
            hash_ = nonzero(hashes_L[line])
            at = place(table, places, hash_)
            if table[at]:
                counts[3, d] += length
            table[at] = hash_
    return counts

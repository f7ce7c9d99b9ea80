"""What the quality rules of Gopher count (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1).

Counted as datatrove does, with which FineWeb's thresholds were found: words hold a letter or a digit, while the shares
per word count bare signs too; every line counts, blank ones as well; a stop word is met in lower case only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numba import njit

from data_pipeline.signals.hashing import Array, fill, nonzero, place, room
from data_pipeline.signals.tokens import ALPHABETIC, IDEOGRAPHIC, SPOKEN, Tokens

STOP_WORDS = {"en": ("the", "be", "to", "of", "and", "that", "have", "with")}
MOST_STOP_WORDS = 64  # of a language: a bit each
LETTERS_PER_WORD = 2  # of a script without blanks; Chinese words have about 1.6 characters, Japanese 2 to 3

_STOP, _HASH, _ELLIPSIS, _BULLET, _MINUS = map(ord, ".#…•-")


def measure(
    tokens: Tokens, languages: Sequence[str], unspaced_D: Array, stop_words: Mapping[str, Sequence[str]] = STOP_WORDS
) -> dict[str, Array]:
    """A column for each rule. NaN, or -1 of `stop_words`, where one makes no sense for the language."""
    known = sorted(set(languages) & stop_words.keys())
    tables, bits = _stop_word_tables([stop_words[language] for language in known])
    table_D = np.array([known.index(one) if one in known else -1 for one in languages], np.int64)
    words, letters, found, different, hashes, ellipses, alphabetic, bullets, trailing = _count(
        tokens.text_C, tokens.texts_D1, tokens.starts_W, tokens.ends_W, tokens.hashes_W, tokens.kinds_W,
        tokens.words_D1, tokens.firsts_L, tokens.stops_L, tokens.lines_D1, tables, bits, table_D, unspaced_D,
    )  # fmt: skip
    lines = np.diff(tokens.lines_D1)
    spaced = np.where(unspaced_D, np.nan, 1.0)
    return {
        "words": words.astype(np.int32),
        "mean_word_length": (spaced * letters / np.maximum(words, 1)).astype(np.float32),
        "hashes": (hashes / np.maximum(found, 1)).astype(np.float32),
        "ellipses": (ellipses / np.maximum(found, 1)).astype(np.float32),
        "bullet_lines": (bullets / lines).astype(np.float32),
        "ellipsis_lines": (trailing / lines).astype(np.float32),
        "alphabetic_words": (spaced * alphabetic / np.maximum(found, 1)).astype(np.float32),
        "stop_words": np.where(table_D < 0, -1, different).astype(np.int32),
    }


def _stop_word_tables(lists: Sequence[Sequence[str]]) -> tuple[Array, Array]:
    """A row for each language: hashes of its stop words, and the bit of each. Raises ValueError where there are too
    many, or where one is not a single word."""
    places = int(room(MOST_STOP_WORDS))
    tables, bits = np.zeros((len(lists), places), np.uint64), np.zeros((len(lists), places), np.uint64)
    for row, words in enumerate(lists):
        if len(words) > MOST_STOP_WORDS:
            raise ValueError(f"{len(words)} stop words of one language: at most {MOST_STOP_WORDS} are counted")
        tokens = Tokens.of(words)
        if wrong := [word for word, count in zip(words, np.diff(tokens.words_D1), strict=True) if count != 1]:
            raise ValueError(f"stop words {wrong} are not single words, so no text would hold them")
        bits[row, fill(tokens.hashes_W, tables[row])] = np.uint64(1) << np.arange(len(words), dtype=np.uint64)
    return tables, bits


@njit(cache=True)
def _count(
    text_C: Array, texts_D1: Array, starts_W: Array, ends_W: Array, hashes_W: Array, kinds_W: Array, words_D1: Array,
    firsts_L: Array, stops_L: Array, lines_D1: Array, tables: Array, bits: Array, table_D: Array, unspaced_D: Array,
) -> tuple[Array, ...]:  # fmt: skip
    """For each document: words and their letters; all found, signs among them; different stop words; hashes; ellipses;
    words with a letter; lines that begin with a bullet; lines that end in an ellipsis."""
    D = words_D1.size - 1
    words_D, letters_D, found_D, stop_words_D = np.zeros(D), np.zeros(D), np.zeros(D), np.zeros(D, np.int64)
    hashes_D, ellipses_D, alphabetic_D = np.zeros(D), np.zeros(D), np.zeros(D)
    bullets_D, trailing_D = np.zeros(D), np.zeros(D)
    for d in range(D):
        words, letters, found, ideographs, alphabetic = 0, 0, 0, 0, 0
        seen, table = np.uint64(0), table_D[d]
        for w in range(words_D1[d], words_D1[d + 1]):
            length, kind = ends_W[w] - starts_W[w], kinds_W[w]
            found += 1
            if kind & SPOKEN:
                words += 1
                letters += length
                alphabetic += (kind & ALPHABETIC) != 0
                ideographs += (kind & IDEOGRAPHIC) != 0
                if table >= 0:
                    hash_ = nonzero(hashes_W[w])
                    seen |= bits[table, place(tables[table], tables.shape[1], hash_)]
        if unspaced_D[d]:  # the letters are taken two by two
            fewer = ideographs - ideographs // LETTERS_PER_WORD
            words -= fewer
            found -= fewer
        words_D[d], letters_D[d], found_D[d], alphabetic_D[d] = words, letters, found, alphabetic
        while seen:
            seen &= seen - np.uint64(1)
            stop_words_D[d] += 1
        hashes, ellipses, stops = 0, 0, 0
        for at in range(texts_D1[d], texts_D1[d + 1]):
            character = text_C[at]
            hashes += character == _HASH
            stops = stops + 1 if character == _STOP else 0
            ellipses += character == _ELLIPSIS or (stops > 0 and stops % 3 == 0)
        hashes_D[d], ellipses_D[d] = hashes, ellipses
        for line in range(lines_D1[d], lines_D1[d + 1]):
            first, stop = firsts_L[line], stops_L[line]
            if first == stop:
                continue
            bullets_D[d] += text_C[first] == _BULLET or text_C[first] == _MINUS
            trailing_D[d] += text_C[stop - 1] == _ELLIPSIS or (
                stop - first >= 3
                and text_C[stop - 1] == _STOP
                and text_C[stop - 2] == _STOP
                and text_C[stop - 3] == _STOP
            )
    return words_D, letters_D, found_D, stop_words_D, hashes_D, ellipses_D, alphabetic_D, bullets_D, trailing_D

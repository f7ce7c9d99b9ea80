"""Unicode as tables: what kind of character a code point is, and which letter stands for it where case and accents do
not count. Made once in a process, in a third of a second."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bytes: TypeAlias = npt.NDArray[np.uint8]

# Kinds of characters.
BLANK = 0  # white space and controls
LETTER = 1  # letters, digits and the marks on them
SIGN = 2  # punctuation and symbols
IDEOGRAPH = 3  # letters of scripts that put no blanks between words: each is taken for a word

# Scripts without blanks between words, as ranges of code points (Unicode's Blocks.txt).
_IDEOGRAPHS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_PLANES_THAT_FOLD = 0x20000  # beyond, nothing has case or accents


@dataclass(frozen=True)
class Characters:
    """A row for each of the 0x110000 code points.

    kinds   BLANK, LETTER, SIGN or IDEOGRAPH
    alpha   1 where `str.isalpha`
    folded  the code point that stands for it where case, width and accents do not count; 0 for marks, which then vanish
    """

    kinds: Bytes
    alpha: Bytes
    folded: npt.NDArray[np.uint32]


@functools.cache
def characters() -> Characters:
    """The tables of this Python's Unicode."""
    every = [chr(point) for point in range(0x110000)]
    categories = list(map(unicodedata.category, every))
    of_category = {"L": LETTER, "N": LETTER, "M": LETTER, "P": SIGN, "S": SIGN, "Z": BLANK, "C": BLANK}
    kinds = np.array([of_category[category[0]] for category in categories], np.uint8)
    for first, last in _IDEOGRAPHS:
        block = kinds[first : last + 1]
        block[block == LETTER] = IDEOGRAPH
    alpha = np.array([category[0] == "L" for category in categories], np.uint8)
    folded = np.arange(0x110000, dtype=np.uint32)
    for point in range(_PLANES_THAT_FOLD):
        if categories[point][0] == "M":
            folded[point] = 0
        elif kinds[point] in (LETTER, IDEOGRAPH):
            folded[point] = _folded(every[point])
    return Characters(kinds, alpha, folded)


def _folded(character: str) -> int:
    """The one letter of the compatible decomposition of its lower case; itself where that holds more."""
    lower = character.lower()
    if lower.isascii():
        return ord(lower)
    letters = [one for one in unicodedata.normalize("NFKD", lower) if unicodedata.category(one)[0] != "M"]
    return ord(letters[0]) if len(letters) == 1 else ord(lower[0])

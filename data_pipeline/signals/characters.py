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
_JOINERS = (0x00AD, 0x200C, 0x200D)  # format characters inside words of Persian and Indian languages; soft hyphens
_PLANES_THAT_FOLD = 0x20000  # beyond, there are marks, but nothing has case or accents

# What a character may be besides its kind.
SPACE = 1  # `str.isspace`, which parts words in `str.split`
UPPER = 2  # `str.isupper`
LOWER = 4  # a letter that is not upper case, those of scripts without case among them
DIGIT = 8  # `str.isdigit`
TERMINAL = 16  # ends a sentence
PUNCTUATION = 32
DECIMAL = 64  # `str.isdecimal`: digits that numbers are written with

# How a sign stands to the word beside it, as spaCy's tokenizer has it.
OPENS = 1  # a word of its own before a word
CLOSES = 2  # a word of its own behind a word
PARTS = 4  # a word of its own between letters, too
CURRENCY = 8  # closes a number
_OPENS_AND_CLOSES = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧'—–"
_OPENS_ONLY = "§%="

# Characters that end sentences, with which datatrove counts lines that end in punctuation: Sentence_Terminal of
# Unicode's PropList.txt, and the Khmer signs that end a text.
_TERMINAL = (
    0x0021, 0x002E, 0x003F, 0x0589, (0x061D, 0x061F), 0x06D4, (0x0700, 0x0702), 0x07F9, 0x0837, 0x0839,
    (0x083D, 0x083E), (0x0964, 0x0965), (0x104A, 0x104B), 0x1362, (0x1367, 0x1368), 0x166E, (0x1735, 0x1736),
    (0x17D4, 0x17D6), (0x17D9, 0x17DA), 0x1803, 0x1809, (0x1944, 0x1945), (0x1AA8, 0x1AAB), (0x1B5A, 0x1B5B),
    (0x1B5E, 0x1B5F), (0x1B7D, 0x1B7E), (0x1C3B, 0x1C3C), (0x1C7E, 0x1C7F), (0x203C, 0x203D), (0x2047, 0x2049),
    0x2E2E, 0x2E3C, (0x2E53, 0x2E54), 0x3002, 0xA4FF, (0xA60E, 0xA60F), 0xA6F3, 0xA6F7, (0xA876, 0xA877),
    (0xA8CE, 0xA8CF), 0xA92F, (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F), (0xAAF0, 0xAAF1), 0xABEB, 0xFE52,
    (0xFE56, 0xFE57), 0xFF01, 0xFF0E, 0xFF1F, 0xFF61, (0x10A56, 0x10A57), (0x10F55, 0x10F59), (0x10F86, 0x10F89),
    (0x11047, 0x11048), (0x110BE, 0x110C1), (0x11141, 0x11143), (0x111C5, 0x111C6), 0x111CD, (0x111DE, 0x111DF),
    (0x11238, 0x11239), (0x1123B, 0x1123C), 0x112A9, (0x1144B, 0x1144C), (0x115C2, 0x115C3), (0x115C9, 0x115D7),
    (0x11641, 0x11642), (0x1173C, 0x1173E), 0x11944, 0x11946, (0x11A42, 0x11A43), (0x11A9B, 0x11A9C),
    (0x11C41, 0x11C42), (0x11EF7, 0x11EF8), (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), 0x16AF5, (0x16B37, 0x16B38),
    0x16B44, 0x16E98, 0x1BC9F, 0x1DA88,
)  # fmt: skip


@dataclass(frozen=True)
class Characters:
    """A row for each of the 0x110000 code points.

    kinds   BLANK, LETTER, SIGN or IDEOGRAPH
    alpha   1 where `str.isalpha`
    folded  the code point that stands for it where case, width and accents do not count; 0 for marks, which then vanish
    affixes  OPENS, CLOSES, PARTS and CURRENCY of signs, as bits
    properties  SPACE, UPPER, LOWER, DIGIT, TERMINAL, PUNCTUATION and DECIMAL, as bits
    """

    kinds: Bytes
    alpha: Bytes
    folded: npt.NDArray[np.uint32]
    affixes: Bytes
    properties: Bytes


@functools.cache
def characters() -> Characters:
    """The tables of this Python's Unicode."""
    every = [chr(point) for point in range(0x110000)]
    categories = list(map(unicodedata.category, every))
    of_category = {"L": LETTER, "N": LETTER, "M": LETTER, "P": SIGN, "S": SIGN, "Z": BLANK, "C": BLANK}
    kinds = np.array([of_category[category[0]] for category in categories], np.uint8)
    kinds[list(_JOINERS)] = LETTER
    for first, last in _IDEOGRAPHS:
        block = kinds[first : last + 1]
        block[block == LETTER] = IDEOGRAPH
    alpha = np.array([category[0] == "L" for category in categories], np.uint8)
    folded = np.arange(0x110000, dtype=np.uint32)
    for point in range(_PLANES_THAT_FOLD):
        if kinds[point] in (LETTER, IDEOGRAPH):
            folded[point] = _folded(every[point])
    folded[[category[0] == "M" for category in categories]] = 0
    folded[list(_JOINERS)] = 0
    return Characters(kinds, alpha, folded, _affixes(categories), _properties(every, categories))


def _affixes(categories: list[str]) -> Bytes:
    of_category = {"So": OPENS | CLOSES | PARTS, "Sc": OPENS | CURRENCY}
    affixes = np.array([of_category.get(category, 0) for category in categories], np.uint8)
    affixes[list(map(ord, _OPENS_AND_CLOSES))] = OPENS | CLOSES
    affixes[list(map(ord, _OPENS_ONLY))] = OPENS
    affixes[ord("…")] |= PARTS
    return affixes


def _properties(every: list[str], categories: list[str]) -> Bytes:
    of_category = {"P": PUNCTUATION, "L": LOWER}
    properties = np.array([of_category.get(category[0], 0) for category in categories], np.uint8)
    for point in range(_PLANES_THAT_FOLD):  # beyond, nothing is upper case, a digit or blank
        character = every[point]
        if character.isupper():
            properties[point] = properties[point] & (0xFF ^ LOWER) | UPPER
        if character.isdigit():
            properties[point] |= DIGIT | (DECIMAL if character.isdecimal() else 0)
        if character.isspace():
            properties[point] |= SPACE
    for first, last in ((one, one) if isinstance(one, int) else one for one in _TERMINAL):
        properties[first : last + 1] |= TERMINAL
    return properties


def _folded(character: str) -> int:
    """The one letter of the compatible decomposition of its lower case; itself where that holds more."""
    lower = character.lower()
    if lower.isascii():
        return ord(lower)
    letters = [one for one in unicodedata.normalize("NFKD", lower) if unicodedata.category(one)[0] != "M"]
    return ord(letters[0]) if len(letters) == 1 else ord(lower[0])

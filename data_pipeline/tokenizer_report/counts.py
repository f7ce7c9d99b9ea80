"""Tokens, words and pieces, counted a batch of documents at a time.

A word is what stands between blanks as the tokenizer sees them: spaces, tabs and line ends. So words can be counted in
the tokens, and those of one piece among them. In languages that put no blanks between words there are none to count.

Axes: V pieces of the vocabulary, T tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, pairwise

import numpy as np

from data_pipeline.tokenizer import BOS, EOS

# As `data_pipeline.signals` has it, which needs packages that tokenizing does not.
UNSPACED = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "dz"))

_BLANKS = frozenset("▁ \t\n\v\f\r")

# What a token is to the words around it, as bits of a code.
_LEADS = 1  # its piece begins with a blank
_TRAILS = 2  # its piece ends with one
_INSIDE = 4  # a word begins inside its piece, behind a blank
_BLANK = 8  # its piece is nothing but blanks
_BYTE = 16
_UNKNOWN = 32
_AFTER = 64  # it stands behind a blank, or first in a document
_BEFORE = 128  # it stands before a blank, or last in a document

_CODES = np.arange(256)


def _codes_with(bit: int) -> np.ndarray:
    return _CODES & bit != 0


_OPENS = _codes_with(_AFTER) & ~_codes_with(_LEADS)  # a word begins with its first character
_CUT = (_OPENS | _codes_with(_INSIDE)) & ~_codes_with(_TRAILS) & ~_codes_with(_BEFORE)  # the word goes on behind it


@dataclass
class Use:
    """What became of some documents. Tokens are without BOS and EOS.

    bytes           of the text in UTF-8
    byte_tokens     single bytes of characters that have no piece
    unknown_tokens  the piece that stands for what has no piece and no bytes
    blank_tokens    blanks alone
    words           0 in languages without blanks between words
    whole_words     words that are one piece
    spaced_tokens   tokens of languages with blanks between words
    """

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    byte_tokens: int = 0
    unknown_tokens: int = 0
    blank_tokens: int = 0
    words: int = 0
    whole_words: int = 0
    spaced_tokens: int = 0

    @classmethod
    def sum(cls, uses: Iterable[Use]) -> Use:
        total = cls()
        for use in uses:
            for field in fields(cls):
                setattr(total, field.name, getattr(total, field.name) + getattr(use, field.name))
        return total


class Counts:
    """The use of each language, and how often each piece came.

    languages   by their code
    pieces_V    int64, by id; BOS and EOS once a document
    """

    def __init__(self, pieces: Sequence[tuple[str, float, str]]) -> None:
        """`pieces` as `tokenizer.pieces` gives them."""
        self.languages: dict[str, Use] = {}
        self.pieces_V = np.zeros(len(pieces), np.int64)
        words = [_words_inside(text, kind) for text, _, kind in pieces]
        self._codes_V = np.array(
            [_code(text, kind, inside) for (text, _, kind), inside in zip(pieces, words, strict=True)], np.uint8
        )
        self._codes_V[[BOS, EOS]] = _LEADS | _TRAILS
        more_V = np.maximum(np.array(words) - 1, 0)
        self._more_V = more_V if more_V.any() else None  # a piece of several words is rare

    def add(
        self, texts: Sequence[str], sizes: Sequence[int], languages: Sequence[str], tokens: list[np.ndarray]
    ) -> None:
        """Count documents: their texts, the bytes of these, their languages and their tokens from BOS to EOS."""
        if not texts:
            return
        order = sorted(range(len(texts)), key=languages.__getitem__)
        tokens_T = np.concatenate([tokens[number] for number in order])
        self.pieces_V += np.bincount(tokens_T, minlength=len(self.pieces_V))
        pieces_T = self._codes_V[tokens_T]
        codes_T = pieces_T.copy()
        codes_T[1:] |= (pieces_T[:-1] & _TRAILS) * np.uint8(_AFTER // _TRAILS)
        codes_T[:-1] |= (pieces_T[1:] & _LEADS) * np.uint8(_BEFORE // _LEADS)
        end = 0
        for language, numbers in groupby(order, key=languages.__getitem__):
            own, begin = list(numbers), end
            end += sum(len(tokens[number]) for number in own)
            found = np.bincount(codes_T[begin:end], minlength=256)
            use = self.languages.setdefault(language, Use())
            use.documents += len(own)
            use.characters += sum(len(texts[number]) for number in own)
            use.bytes += sum(sizes[number] for number in own)
            use.tokens += end - begin - 2 * len(own)
            use.byte_tokens += _sum(found, _codes_with(_BYTE))
            use.unknown_tokens += _sum(found, _codes_with(_UNKNOWN))
            use.blank_tokens += _sum(found, _codes_with(_BLANK))
            if language not in UNSPACED:
                words = _sum(found, _OPENS) + _sum(found, _codes_with(_INSIDE))
                if self._more_V is not None:
                    words += int(self._more_V[tokens_T[begin:end]].sum())
                use.words += words
                use.whole_words += words - _sum(found, _CUT)
                use.spaced_tokens += end - begin - 2 * len(own)


def _sum(found: np.ndarray, codes: np.ndarray) -> int:
    return int(found[codes].sum())


def _words_inside(text: str, kind: str) -> int:
    """Words of a piece that begin behind a blank of it."""
    if kind == "byte":
        return 0
    return sum(before in _BLANKS and after not in _BLANKS for before, after in pairwise(text))


def _code(text: str, kind: str, inside: int) -> int:
    if kind == "byte":  # its text is <0x0A>
        text = chr(int(text[3:5], 16))
    blank = [character in _BLANKS for character in text]
    return (
        _LEADS * blank[0]
        | _TRAILS * blank[-1]
        | _INSIDE * (inside > 0)
        | _BLANK * all(blank)
        | _BYTE * (kind == "byte")
        | _UNKNOWN * (kind == "unknown")
    )

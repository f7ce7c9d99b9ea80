"""Lists of bad words, matched as C4 does it (Raffel et al. 2020; Xue et al. 2021 for languages other than English).

A word counts where neither a letter nor a digit touches it, whatever its case; in languages without blanks between
words wherever it stands. C4 drops a document that holds one. The lists that C4 took are in this package
(`naughty-words.txt` says where they come from).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PACKAGED = Path(__file__).with_name("naughty-words.json.gz")
# Scripts without blanks between words, as C4 has them.
UNSPACED = frozenset(("ja", "th", "zh"))
# Words that C4 took out of the lists: they are part of ordinary ones.
ALLOWED = {"ja": frozenset(("sm", "グロ", "女の子")), "zh": frozenset(("性",))}

_WORD = re.compile(r"\w+")


class WordList:
    """The words of a language.

    `words` may hold several words each, and signs. Raises ValueError where one is blank.
    """

    def __init__(self, words: Iterable[str], language: str) -> None:
        self._unspaced = language in UNSPACED
        listed = sorted({word.lower().strip() for word in words} - ALLOWED.get(language, frozenset()))
        if "" in listed:
            raise ValueError(f"the word list of {language} holds an empty entry")
        self._single = frozenset(word for word in listed if _WORD.fullmatch(word))
        # Those of several words, with their parts: a phrase is looked for only where all of its parts are there.
        self._phrases = tuple(
            (frozenset(_WORD.findall(word)), word, re.compile(rf"(?<!\w){re.escape(word)}(?!\w)"))
            for word in listed
            if word not in self._single
        )
        self._listed = tuple(listed)

    def count(self, text: str) -> int:
        """How many different entries the text holds."""
        text = text.lower()
        if self._unspaced:
            return sum(word in text for word in self._listed)
        words = set(_WORD.findall(text))
        return len(words & self._single) + sum(
            parts <= words and word in text and pattern.search(text) is not None
            for parts, word, pattern in self._phrases
        )


@cache
def packaged(language: str) -> WordList | None:
    """The list of a language (ISO 639-1) that this package holds; None where it holds none."""
    words = lists().get(language)
    return None if words is None else WordList(words, language)


@cache
def lists() -> dict[str, list[str]]:
    """The packaged words by language."""
    lists: dict[str, list[str]] = json.loads(gzip.decompress(_PACKAGED.read_bytes()))
    return lists

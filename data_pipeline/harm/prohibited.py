"""The category that must not be stored: sexual content about minors.

No classifier is trained for it, as that would need such material. A document belongs to it where a word for a minor
stands within a few words of a sexual one, or where a list of the user names its URL, its domain or the digest of its
text (such lists come from IWF, NCMEC and the like). The rule is wide on purpose: news and advice are lost with it.

Such a document is dropped and counted under `REASON`. Its text, id and URL are written nowhere: not among the removed
documents, not in a log, not in a card. So all that is said here about one is yes or no.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from conf.exits import DataError
from data_pipeline.harm.blocks import BlockList
from data_pipeline.harm.words import ALLOWED, lists

REASON = "prohibited"
NEAR = 8  # words between the two at most

# A word; in scripts without blanks each letter is one.
_TOKEN = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    r"|[^\W_]+"
)
_ASCII_TOKEN = re.compile(r"[a-z0-9]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")

# Terms for minors, by language. Not those that mean something else more often: `minor version`, `el menor`.
MINORS = {
    "en": "child, children, childs, kid, kids, minors, underage, preteen, preteens, toddler, schoolgirl, schoolboy",
    "de": "kind, kinder, kindern, kindes, minderjährig, minderjährige, minderjährigen, schulmädchen, schuljunge",
    "fr": "enfant, enfants, mineure, mineurs, mineures, fillette, fillettes, écolière, écolier",
    "es": "niño, niña, niños, niñas, menor de edad, menores de edad, colegiala, colegial",
    "it": "bambino, bambina, bambini, bambine, minorenne, minorenni, scolaretta",
    "pt": "criança, crianças, menino, menina, meninos, meninas, menor de idade, menores de idade",
    "nl": "kind, kinderen, minderjarig, minderjarige, minderjarigen, schoolmeisje",
    "pl": "dziecko, dzieci, dziecka, nieletni, nieletnia, nieletnich, małoletni",
    "ru": "ребенок, ребёнок, ребенка, ребёнка, дети, детей, несовершеннолетний, несовершеннолетняя",
    "zh": "儿童, 幼童, 幼女, 未成年",
    "ja": "児童, 子供, 幼女, 未成年, 小学生",
    "ko": "아동, 어린이, 미성년자",
}


class Lexicon:
    """Two sets of terms, of one or more words each; a term may be the SHA-256 of its normal form (`digest`)."""

    def __init__(self, minors: Iterable[str], sexual: Iterable[str], near: int = NEAR) -> None:
        self._minors, self._sexual, self._near = _Terms(minors), _Terms(sexual), near

    @staticmethod
    def packaged(language: str) -> Lexicon | None:
        """Neutral terms for minors and the packaged word list of a language, for documents in it; None without both.

        What is harmless in one language is on the list of another, so no text is held against all of them.
        """
        if language not in MINORS or language not in lists():
            return None
        allowed = ALLOWED.get(language, frozenset())
        return Lexicon(MINORS[language].split(", "), (word for word in lists()[language] if word not in allowed))

    @staticmethod
    def read(path: Path) -> Lexicon:
        """A file with a term a line behind `minor ` or `sexual `. Raises DataError, with file and line, else, and
        where it holds none of a kind."""
        terms: dict[str, list[str]] = {"minor": [], "sexual": []}
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the lexicon {path} cannot be read ({type(error).__name__}): check the path") from None
        for number, line in enumerate(lines, 1):
            kind, _, term = line.strip().partition(" ")
            if not kind or kind.startswith("#"):
                continue
            if kind not in terms or not _tokens(term):
                raise DataError(f"{path}:{number} is not `minor TERM` or `sexual TERM`: mend or remove that line")
            terms[kind].append(term)
        if lacks := [kind for kind, of_kind in terms.items() if not of_kind]:
            raise DataError(
                f"the lexicon {path} holds no term behind `{'` and none behind `'.join(lacks)}`, so it names nothing: "
                "complete it, or leave it out of curate.harm.lexicons"
            )
        return Lexicon(terms["minor"], terms["sexual"])

    def holds(self, text: str) -> bool:
        """Whether a word for a minor stands within `near` words of a sexual one."""
        text = _normal(text)
        return self._minors.may_be_in(text) and any(map(self._within, _blocks(text)))

    def _within(self, text: str) -> bool:
        words = _words(text)
        minors = self._minors.places(words)
        if not minors:
            return False
        sexual = self._sexual.places(words)
        at = 0
        for place in minors:
            while at < len(sexual) and sexual[at] < place - self._near - 1:
                at += 1
            if at < len(sexual) and sexual[at] <= place + self._near + 1:
                return True
        return False


def is_prohibited(url: str, text: str, lexicon: Lexicon | None, listed: BlockList) -> bool:
    """Whether a document must be dropped without a trace but its count."""
    return bool(listed.reason(url, text)) or (lexicon is not None and lexicon.holds(text))


def digest(term: str) -> str:
    """SHA-256, in hex, of the words of a term in small letters (NFKC) with one blank between two."""
    return hashlib.sha256(" ".join(_tokens(term)).encode()).hexdigest()


class _Terms:
    """Terms by their number of words, plain or as digests."""

    def __init__(self, terms: Iterable[str]) -> None:
        plain: set[str] = set()
        self._hashed: set[str] = set()
        for term in terms:
            if _DIGEST.fullmatch(term.strip().lower()):
                self._hashed.add(term.strip().lower())
            elif words := _tokens(term):
                plain.add(" ".join(words))
        self._plain: dict[int, list[tuple[str, frozenset[str]]]] = {}  # by their number of words, with these
        for term in sorted(plain):
            words = term.split()
            self._plain.setdefault(len(words), []).append((term, frozenset(words)))
        self._beginnings = sorted({term.split()[0] for term in plain})
        self._lengths = sorted({*self._plain, *(_HASHED_WORDS if self._hashed else ())})

    def may_be_in(self, text: str) -> bool:
        """Whether a text in normal form holds the first word of any, be it within another: this is soon known."""
        return bool(self._hashed) or any(head in text for head in self._beginnings)

    def places(self, words: Sequence[str]) -> list[int]:
        """Where terms begin, in order."""
        found: set[int] = set()
        vocabulary = set(words)
        for length in self._lengths:
            hashed = bool(self._hashed) and length in _HASHED_WORDS
            plain = {term for term, parts in self._plain.get(length, ()) if parts <= vocabulary}
            if not plain and not hashed:
                continue
            grams = words if length == 1 else [" ".join(words[n : n + length]) for n in range(len(words) - length + 1)]
            present = plain.intersection(grams)
            if hashed:
                present |= {gram for gram in set(grams) if _hash(gram) in self._hashed}
            if present:
                found.update(n for n, gram in enumerate(grams) if gram in present)
        return sorted(found)


_BLOCK, _OVERLAP, _LONGEST_WORD = 1 << 20, 1 << 13, 1 << 10  # characters
_HASHED_WORDS = (1, 2, 3)  # words of a term that is given as a digest: more would be many digests a text


@lru_cache(1 << 16)
def _hash(gram: str) -> str:
    return hashlib.sha256(gram.encode("utf-8", "surrogatepass")).hexdigest()


def _blocks(text: str) -> Iterator[str]:
    """A text in pieces that overlap by more than what is looked for, as its words take many times its memory."""
    start = 0
    while True:
        yield text[start : start + _BLOCK]
        start += _BLOCK - _OVERLAP
        if start + _OVERLAP >= len(text):
            return
        start = max(start, text.find(" ", start, start + _LONGEST_WORD))  # not within a word


def _tokens(text: str) -> list[str]:
    return _words(_normal(text))


def _normal(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def _words(text: str) -> list[str]:
    return (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)

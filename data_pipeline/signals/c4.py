"""The rules of C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2), which edit lines and judge what is left.

Counted as datatrove does. A line goes where it holds a word of more than 1000 characters, fewer than three words, the
word javascript or a phrase of cookie and privacy notices; where asked, also where it does not end in punctuation.
Citations as Wikipedia writes them are cut from the lines that stay. A page goes where one of its lines says "lorem
ipsum" or holds a curly bracket, unless that line went before, and where too few sentences are left.

Sentences are told apart as spaCy's sentencizer does, on our words: one ends at a mark that stands as a word of its own.
A full stop does not where it belongs to an abbreviation or an initial.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numba import njit

from data_pipeline.signals.characters import DECIMAL, PUNCTUATION, SPACE, TERMINAL, characters
from data_pipeline.signals.hashing import Array
from data_pipeline.signals.phrases import ASCII, Phrases, lower, matched, standing
from data_pipeline.signals.tokens import SPOKEN, Tokens

LONGEST_WORD = 1000
FEWEST_WORDS = 3
LONG_PARAGRAPH = 200  # characters

_JAVASCRIPT, _LOREM_IPSUM = 0, 1  # among the phrases; those after them are of cookie and privacy notices
_PHRASES = Phrases.of(
    (
        "javascript", "lorem ipsum",
        "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies",
    )
)  # fmt: skip
_CITATIONS = Phrases.of(("[edit]", "[citation needed]"))
# Words that a full stop is part of in English, as spaCy has them.
_ABBREVIATIONS = (
    "Adm", "Ak", "Ala", "Apr", "Ariz", "Ark", "Aug", "Bros", "Calif", "Co", "Colo", "Conn", "Corp", "Dec", "Del", "Dr",
    "E.g", "Feb", "Fla", "Ga", "Gen", "Gov", "I.e", "Ia", "Id", "Ill", "Inc", "Ind", "Jan", "Jr", "Jul", "Jun", "Kan",
    "Kans", "Ky", "La", "Ltd", "Mar", "Mass", "Md", "Messrs", "Mich", "Minn", "Miss", "Mo", "Mont", "Mr", "Mrs", "Ms",
    "Mt", "Neb", "Nebr", "Nev", "Nov", "Oct", "Okla", "Ore", "Pa", "Prof", "Rep", "Rev", "Sen", "Sep", "Sept", "St",
    "Tenn", "Va", "Wash", "Wis", "a.m", "co", "e.g", "i.e", "p.m", "v.s", "vs",
)  # fmt: skip

_OPEN, _CLOSE, _CURLY, _STOP = map(ord, "[]{.")
_MARKS = tuple(map(ord, ".?!\"'"))  # what a line must end in, where that is asked


@dataclass(frozen=True)
class _Lines:
    """What the rules ask of each line, [lines]: by which rule it goes, what it says, and whether it stays."""

    document: Array
    first: Array  # characters of the line without the blanks at its ends
    stop: Array
    long_word: Array
    short: Array
    lorem_ipsum: Array
    javascript: Array
    curly: Array
    policy: Array
    stays: Array
    ended: Array  # in punctuation
    citations: Array
    sentences: Array


def measure(tokens: Tokens, unspaced_D: Array) -> dict[str, Array]:
    """Lines that each line rule takes, citations, long paragraphs, and what the page rules ask for."""
    lines, _ = _judged(tokens, unspaced_D)
    counted_L = {
        "c4_long_word_lines": lines.long_word,
        "c4_short_lines": lines.short & (lines.stop > lines.first),
        "c4_javascript_lines": lines.javascript,
        "c4_policy_lines": lines.policy,
        "c4_paragraphs": tokens.ends_L - tokens.starts_L >= LONG_PARAGRAPH,
        "c4_citations": lines.stays * lines.citations,
        "c4_lorem_ipsum": lines.lorem_ipsum,
        "c4_curly_brackets": lines.curly,
        "c4_sentences": lines.stays * lines.sentences,
        "c4_ended_lorem_ipsum": lines.ended & lines.lorem_ipsum,
        "c4_ended_curly_brackets": lines.ended & lines.curly,
        "c4_ended_sentences": (lines.ended & lines.stays) * lines.sentences,
    }
    documents = len(unspaced_D)
    return {
        name: np.bincount(lines.document, of_line, documents).astype(np.int32) for name, of_line in counted_L.items()
    }


def cleaned(text: str, *, unspaced: bool = False, terminal_punctuation: bool = False) -> str:
    """The lines that stay, without blanks at their ends and without citations; "" where none does."""
    tokens = Tokens.of([text])
    lines, cut_C = _judged(tokens, np.array([unspaced]))
    kept_L = lines.stays & (lines.ended | (not terminal_punctuation))
    _cut(tokens.starts_L, tokens.ends_L, lines.first, lines.stop, kept_L, cut_C)
    return tokens.text_C[~cut_C].tobytes().decode("utf-32-le").strip()


def _judged(tokens: Tokens, unspaced_D: Array) -> tuple[_Lines, Array]:
    """The lines, and which characters belong to citations."""
    text_C, properties = tokens.text_C, characters().properties
    document = np.repeat(np.arange(len(unspaced_D)), np.diff(tokens.lines_D1))
    cut_C = np.zeros(text_C.size, np.bool_)
    first, stop = tokens.firsts_L, tokens.stops_L
    words, longest = _blank_words(text_C, first, stop, properties)
    phrases, curly, citations = _scan(
        text_C, first, stop, properties, _PHRASES.letters_PL, _PHRASES.first_A, _PHRASES.second_A,
        _CITATIONS.letters_PL, cut_C,
    )  # fmt: skip
    long_word = longest > LONGEST_WORD
    short = ~long_word & (words < FEWEST_WORDS) & ~(unspaced_D[document] & (words > 0))
    other = ~long_word & ~short
    javascript = other & (phrases & np.uint64(1 << _JAVASCRIPT) != 0)
    policy = other & ~javascript & (phrases >> np.uint64(_LOREM_IPSUM + 1) != 0)
    lines = _Lines(
        document=document,
        first=first,
        stop=stop,
        long_word=long_word,
        short=short,
        lorem_ipsum=other & (phrases & np.uint64(1 << _LOREM_IPSUM) != 0),
        javascript=javascript,
        curly=other & ~javascript & curly,
        policy=policy,
        stays=other & ~javascript & ~policy,
        ended=_ended(text_C, first, stop, cut_C),
        citations=citations,
        sentences=_sentences(
            text_C, tokens.starts_W, tokens.ends_W, tokens.hashes_W, tokens.kinds_W, first, stop, properties,
            _abbreviations(), cut_C, citations,
        ),
    )  # fmt: skip
    return lines, cut_C


@functools.cache
def _abbreviations() -> Array:
    return np.sort(Tokens.of(_ABBREVIATIONS).hashes_W)


@njit(cache=True)
def _cut(starts_L: Array, ends_L: Array, first_L: Array, stop_L: Array, kept_L: Array, cut_C: Array) -> None:
    """Cut lines with their line feeds, and from those that are kept the blanks at their ends."""
    for line in range(kept_L.size):
        if kept_L[line]:
            cut_C[starts_L[line] : first_L[line]] = True
            cut_C[stop_L[line] : ends_L[line]] = True
        else:
            cut_C[starts_L[line] : min(ends_L[line] + 1, cut_C.size)] = True


@njit(cache=True)
def _blank_words(text_C: Array, first_L: Array, stop_L: Array, properties: Array) -> tuple[Array, Array]:
    """Of each line: the words that blanks part, and characters of the longest."""
    words_L, longest_L = np.zeros(first_L.size, np.int32), np.zeros(first_L.size, np.int32)
    for line in range(first_L.size):
        first, stop = first_L[line], stop_L[line]
        words, longest, begin = 0, 0, first
        for at in range(first, stop):
            if properties[text_C[at]] & SPACE:
                words += at > begin
                longest = max(longest, at - begin)
                begin = at + 1
        words_L[line], longest_L[line] = words + (stop > begin), max(longest, stop - begin)
    return words_L, longest_L


@njit(cache=True)
def _scan(
    text_C: Array, first_L: Array, stop_L: Array, properties: Array, letters_PL: Array, first_A: Array,
    second_A: Array, citations: Array, cut_C: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Of each line: the phrases it holds, whether it holds a curly bracket, and citations, whose characters are cut."""
    phrases_L, curly_L = np.zeros(first_L.size, np.uint64), np.zeros(first_L.size, np.bool_)
    citations_L = np.zeros(first_L.size, np.int32)
    for line in range(first_L.size):
        first, stop = first_L[line], stop_L[line]
        after, curly = first, False
        for at in range(first, stop):
            character = lower(text_C[at])
            if character >= ASCII:
                continue
            if first_A[character] and at + 1 < stop:
                following = lower(text_C[at + 1])
                candidates = first_A[character] & second_A[following] if following < ASCII else np.uint64(0)
                if candidates:
                    phrases_L[line] |= standing(text_C, at, stop, letters_PL, candidates)
            curly |= character == _CURLY
            if character == _OPEN and at >= after:
                after = _end_of_citation(text_C, at, stop, properties, citations)
                if after > at:
                    cut_C[at:after] = True
                    citations_L[line] += 1
        curly_L[line] = curly
    return phrases_L, curly_L, citations_L


@njit(cache=True)
def _end_of_citation(text_C: Array, at: int, stop: int, properties: Array, citations: Array) -> int:
    """Where `[12]`, `[]`, `[edit]` or `[citation needed]` ends; `at` where none begins there."""
    close = at + 1
    while close < stop and properties[text_C[close]] & DECIMAL:
        close += 1
    if close < stop and text_C[close] == _CLOSE:
        return close + 1
    for p in range(citations.shape[0]):
        length = matched(text_C, at, stop, citations[p], True)
        if length:
            return at + length
    return at


@njit(cache=True)
def _ended(text_C: Array, first_L: Array, stop_L: Array, cut_C: Array) -> Array:
    """Which lines end in punctuation, citations apart, and not in three full stops."""
    ended_L = np.zeros(first_L.size, np.bool_)
    for line in range(first_L.size):
        stops, at = 0, stop_L[line] - 1
        while at >= first_L[line] and stops < 3 and (cut_C[at] or text_C[at] == _STOP):
            stops += not cut_C[at]
            at -= 1
        ended_L[line] = stops in (1, 2) or (stops == 0 and at >= first_L[line] and text_C[at] in _MARKS)
    return ended_L


@njit(cache=True)
def _sentences(
    text_C: Array, starts_W: Array, ends_W: Array, hashes_W: Array, kinds_W: Array, first_L: Array, stop_L: Array,
    properties: Array, abbreviations: Array, cut_C: Array, citations_L: Array,
) -> Array:  # fmt: skip
    """Sentences of each line."""
    sentences_L = np.ones(first_L.size, np.int32)
    w = 0
    for line in range(first_L.size):
        over, first = False, first_L[line]
        while w < starts_W.size and starts_W[w] < stop_L[line]:
            if not cut_C[starts_W[w]]:
                sign = properties[text_C[starts_W[w]]] if not kinds_W[w] & SPOKEN else 0
                if sign & TERMINAL and _ends_sentence(
                    text_C, starts_W, ends_W, hashes_W, kinds_W, w, first, abbreviations
                ):
                    over = True
                elif over and not sign & PUNCTUATION:
                    sentences_L[line] += 1
                    over = False
                if citations_L[line] and not sign:
                    over |= _ends_before_citation(text_C, starts_W[w], ends_W[w], properties, cut_C)
            w += 1
    return sentences_L


@njit(cache=True, inline="always")
def _ends_before_citation(text_C: Array, first: int, stop: int, properties: Array, cut_C: Array) -> bool:
    """Whether a word with a citation behind it (`ended.[1`) ends in a mark without that."""
    for at in range(first + 1, stop):
        if cut_C[at] and not cut_C[at - 1]:
            return properties[text_C[at - 1]] & TERMINAL != 0
    return False


@njit(cache=True)
def _ends_sentence(
    text_C: Array, starts_W: Array, ends_W: Array, hashes_W: Array, kinds_W: Array, w: int, first: int,
    abbreviations: Array,
) -> bool:  # fmt: skip
    """Whether a mark at the end of sentences ends one here."""
    mark, at = text_C[starts_W[w]], starts_W[w]
    if mark != _STOP:
        return True
    if ends_W[w] - at > 1:
        return False  # an ellipsis
    if at == first or ends_W[w - 1] < at or not kinds_W[w - 1] & SPOKEN:
        return True
    place = np.searchsorted(abbreviations, hashes_W[w - 1])
    return place == abbreviations.size or abbreviations[place] != hashes_W[w - 1]

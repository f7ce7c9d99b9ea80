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

# What is counted, a row each: lines that a line rule takes, and of those that stay, but for lorem ipsum and brackets.
_COUNTS = (
    "c4_long_word_lines", "c4_short_lines", "c4_javascript_lines", "c4_policy_lines", "c4_paragraphs", "c4_citations",
    "c4_lorem_ipsum", "c4_curly_brackets", "c4_sentences",
    "c4_ended_lorem_ipsum", "c4_ended_curly_brackets", "c4_ended_sentences",  # of lines that end in punctuation only
)  # fmt: skip
_LONG, _SHORT, _SCRIPT, _POLICY, _PARAGRAPHS, _CITED, _LOREM, _CURLIES, _SENTENCES = range(9)
_ENDED = 3  # rows further down


def measure(tokens: Tokens, unspaced_D: Array) -> dict[str, Array]:
    """Lines that each line rule takes, citations, long paragraphs, and what the page rules ask for."""
    counts, _ = _edited(tokens, unspaced_D, terminal_punctuation=False)
    return {name: counts_D.astype(np.int32) for name, counts_D in zip(_COUNTS, counts, strict=True)}


def cleaned(text: str, *, unspaced: bool = False, terminal_punctuation: bool = False) -> str:
    """The lines that stay, without blanks at their ends and without citations; "" where none does."""
    tokens = Tokens.of([text])
    _, cut_C = _edited(tokens, np.array([unspaced]), terminal_punctuation)
    return tokens.text_C[~cut_C].tobytes().decode("utf-32-le").strip()


def _edited(tokens: Tokens, unspaced_D: Array, terminal_punctuation: bool) -> tuple[Array, Array]:
    return _edit(
        tokens.text_C, tokens.texts_D1, tokens.starts_W, tokens.ends_W, tokens.hashes_W, tokens.kinds_W,
        tokens.starts_L, tokens.ends_L, tokens.lines_D1, characters().properties, _abbreviations(),
        _PHRASES.letters_PL, _PHRASES.begin_A, _CITATIONS.letters_PL, unspaced_D, terminal_punctuation,
    )  # fmt: skip


@functools.cache
def _abbreviations() -> Array:
    return np.sort(Tokens.of(_ABBREVIATIONS).hashes_W)


@njit(cache=True)
def _edit(
    text_C: Array, texts_D1: Array, starts_W: Array, ends_W: Array, hashes_W: Array, kinds_W: Array,
    starts_L: Array, ends_L: Array, lines_D1: Array, properties: Array, abbreviations: Array,
    letters_PL: Array, begin_A: Array, citations: Array, unspaced_D: Array, terminal_punctuation: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """What is counted, [12, documents], and which characters are cut."""
    D = lines_D1.size - 1
    counts = np.zeros((12, D), np.int64)
    cut_C = np.zeros(text_C.size, np.bool_)
    w = 0
    for d in range(D):
        for line in range(lines_D1[d], lines_D1[d + 1]):
            first, stop = starts_L[line], ends_L[line]
            counts[_PARAGRAPHS, d] += stop - first >= LONG_PARAGRAPH
            while first < stop and properties[text_C[first]] & SPACE:
                first += 1
            while first < stop and properties[text_C[stop - 1]] & SPACE:
                stop -= 1
            words, longest = _blank_words(text_C, first, stop, properties)
            phrases, curlies, cited = _scan(
                text_C, first, stop, properties, letters_PL, begin_A, citations, cut_C
            )  # fmt: skip
            ended = _is_ended(text_C, first, stop, cut_C)
            kept = False
            if longest > LONGEST_WORD:
                counts[_LONG, d] += 1
            elif words < FEWEST_WORDS and not (words and unspaced_D[d]):
                counts[_SHORT, d] += words > 0
            else:
                lorem = phrases >> np.uint64(_LOREM_IPSUM) & np.uint64(1) != 0
                script = phrases & np.uint64(1) != 0
                policy = phrases >> np.uint64(_LOREM_IPSUM + 1) != 0
                counts[_LOREM, d] += lorem
                counts[_LOREM + _ENDED, d] += lorem and ended
                counts[_SCRIPT, d] += script
                if not script:
                    counts[_CURLIES, d] += curlies
                    counts[_CURLIES + _ENDED, d] += curlies and ended
                    counts[_POLICY, d] += policy
                if not script and not policy:
                    kept = ended or not terminal_punctuation
                    while w < starts_W.size and starts_W[w] < first:
                        w += 1
                    sentences, w = _sentences(
                        text_C, starts_W, ends_W, hashes_W, kinds_W, w, first, stop, properties, abbreviations, cut_C,
                        cited,
                    )  # fmt: skip
                    counts[_SENTENCES, d] += sentences
                    counts[_SENTENCES + _ENDED, d] += sentences if ended else 0
                    counts[_CITED, d] += cited
            if kept:
                cut_C[starts_L[line] : first] = True
                cut_C[stop : ends_L[line]] = True
            else:
                cut_C[starts_L[line] : min(ends_L[line] + 1, texts_D1[d + 1])] = True
    return counts, cut_C


@njit(cache=True, inline="always")
def _blank_words(text_C: Array, first: int, stop: int, properties: Array) -> tuple[int, int]:
    """How many words blanks part, and the characters of the longest."""
    words, longest, begin = 0, 0, first
    for at in range(first, stop + 1):
        if at == stop or properties[text_C[at]] & SPACE:
            words += at > begin
            longest = max(longest, at - begin)
            begin = at + 1
    return words, longest


@njit(cache=True)
def _scan(
    text_C: Array, first: int, stop: int, properties: Array, letters_PL: Array, begin_A: Array, citations: Array,
    cut_C: Array,
) -> tuple[np.uint64, bool, int]:  # fmt: skip
    """The phrases and curly brackets of a line, and how many citations were cut from it."""
    phrases, curlies, cited, after = np.uint64(0), False, 0, first
    for at in range(first, stop):
        character = lower(text_C[at])
        if character >= ASCII:
            continue
        if begin_A[character]:
            phrases |= standing(text_C, at, stop, letters_PL, begin_A[character])
        curlies |= character == _CURLY
        if character == _OPEN and at >= after:
            after = _end_of_citation(text_C, at, stop, properties, citations)
            if after > at:
                cut_C[at:after] = True
                cited += 1
    return phrases, curlies, cited


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
def _is_ended(text_C: Array, first: int, stop: int, cut_C: Array) -> bool:
    """Whether a line ends in punctuation, citations apart, and not in three full stops."""
    stops, at = 0, stop - 1
    while at >= first and stops < 3:
        if not cut_C[at]:
            if text_C[at] != _STOP:
                return stops > 0 or text_C[at] in _MARKS
            stops += 1
        at -= 1
    return 0 < stops < 3


@njit(cache=True)
def _sentences(
    text_C: Array, starts_W: Array, ends_W: Array, hashes_W: Array, kinds_W: Array, w: int, first: int, stop: int,
    properties: Array, abbreviations: Array, cut_C: Array, cited: int,
) -> tuple[int, int]:  # fmt: skip
    """Sentences of a line whose first word is `w`, and the first word behind it."""
    sentences, over = 1, False
    while w < starts_W.size and starts_W[w] < stop:
        if not cut_C[starts_W[w]]:
            sign = properties[text_C[starts_W[w]]] if not kinds_W[w] & SPOKEN else 0
            if sign & TERMINAL and _ends_sentence(text_C, starts_W, ends_W, hashes_W, kinds_W, w, first, abbreviations):
                over = True
            elif over and not sign & PUNCTUATION:
                sentences += 1
                over = False
            if cited and not sign:
                over |= _ends_before_citation(text_C, starts_W[w], ends_W[w], properties, cut_C)
        w += 1
    return sentences, w


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

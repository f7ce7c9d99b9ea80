"""The rules of RefinedWeb (Penedo et al. 2023, arXiv:2306.01116, appendix G), as DCLM writes them for its baseline.

Its edits (DCLM's `dclm_baseline_refinedweb.yaml`) take lines that are more than half upper case, digits only, a counter
("3 likes"), or one word; of lines of at most ten words they cut "items in cart" anywhere, "Read more..." at the end and
"Sign-in" at the beginning. A page goes where that takes more than a twentieth of its words. Not taken over: its removal
of addresses, and that `Read more...` is a regular expression there whose dots stand for anything.

Its page rules are Gopher's on words that blanks part, with more bullets and ellipses, and with stop words counted each
time and in any case. Its limits on words and repetition judge the columns of `gopher` and `repetition`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from data_pipeline.signals.characters import DECIMAL, DIGIT, IDEOGRAPH, LETTER, SPACE, UPPER, characters
from data_pipeline.signals.gopher import STOP_WORDS
from data_pipeline.signals.hashing import Array
from data_pipeline.signals.phrases import ASCII, Phrases, lower, matched
from data_pipeline.signals.tokens import SPOKEN, Tokens

MOST_UPPER_CASE = 0.5  # of the characters of a line
FEWEST_WORDS = 2
SHORT_LINE = 10  # words

_IN_CART, _READ_MORE, _SIGN_IN = 0, 1, 2
_CUT = Phrases.of(("items in cart", "read more...", "sign-in")).letters_PL
_COUNTED = Phrases.of(
    ("likes", "shares", "comments", "retweets", "reposts", "quotes", "bookmarks", "upvotes", "downvotes", "downloads",
     "views", "followers")
).letters_PL  # fmt: skip
_STOP_WORDS = Phrases.of(STOP_WORDS["en"])
_BULLETS = tuple(map(ord, "●•*-"))
_STOP, _COMMA, _HASH, _ELLIPSIS, _BLANK, _UNDERSCORE = map(ord, ".,#… _")
_THOUSANDS = tuple(map(ord, "kmb"))

_TOKENS, _CHARACTERS, _ALPHABETIC, _STOPS, _SYMBOLS, _LINES, _BULLETED, _TRAILING = range(8)


def measure(tokens: Tokens, unspaced_D: Array) -> dict[str, Array]:
    """A column for each rule. NaN, or -1 of `refinedweb_stop_words`, where words make no sense for the script."""
    counts = _count(
        tokens.text_C, tokens.texts_D1, tokens.firsts_L, tokens.stops_L, tokens.lines_D1, characters().properties,
        characters().alpha, _STOP_WORDS.letters_PL, _STOP_WORDS.first_A, _STOP_WORDS.second_A,
    )  # fmt: skip
    cut_C = _edited(tokens, unspaced_D)
    words, gone = _words_cut(tokens.starts_W, tokens.ends_W, tokens.kinds_W, tokens.words_D1, cut_C)
    spaced = np.where(unspaced_D | (counts[_TOKENS] == 0), np.nan, 1.0)
    lines, found = np.maximum(counts[_LINES], 1), np.maximum(counts[_TOKENS], 1)
    return {
        "refinedweb_mean_word_length": (spaced * counts[_CHARACTERS] / found).astype(np.float32),
        "refinedweb_symbols": (spaced * counts[_SYMBOLS] / found).astype(np.float32),
        "refinedweb_bullet_lines": (counts[_BULLETED] / lines).astype(np.float32),
        "refinedweb_ellipsis_lines": (counts[_TRAILING] / lines).astype(np.float32),
        "refinedweb_other_words": (spaced * (1 - counts[_ALPHABETIC] / found)).astype(np.float32),
        "refinedweb_stop_words": np.where(unspaced_D, -1, counts[_STOPS]).astype(np.int32),
        "refinedweb_removed_words": (gone / np.maximum(words, 1)).astype(np.float32),
    }


def cleaned(text: str, *, unspaced: bool = False) -> str:
    """The text without what the edits take; "" where nothing is left."""
    tokens = Tokens.of([text])
    cut_C = _edited(tokens, np.array([unspaced]))
    return tokens.text_C[~cut_C].tobytes().decode("utf-32-le").strip()


def _edited(tokens: Tokens, unspaced_D: Array) -> Array:
    return _edit(
        tokens.text_C, tokens.texts_D1, tokens.starts_L, tokens.ends_L, tokens.lines_D1, characters().properties,
        characters().kinds, _CUT, _COUNTED, unspaced_D,
    )  # fmt: skip


@njit(cache=True)
def _words_cut(starts_W: Array, ends_W: Array, kinds_W: Array, words_D1: Array, cut_C: Array) -> Array:
    """[2, documents]: words, and those of which no character is left."""
    D = words_D1.size - 1
    counts = np.zeros((2, D))
    for d in range(D):
        for w in range(words_D1[d], words_D1[d + 1]):
            if kinds_W[w] & SPOKEN:
                counts[0, d] += 1
                counts[1, d] += cut_C[starts_W[w] : ends_W[w]].all()
    return counts


# ---- edits -----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _edit(
    text_C: Array, texts_D1: Array, starts_L: Array, ends_L: Array, lines_D1: Array, properties: Array, kinds: Array,
    cut: Array, counted: Array, unspaced_D: Array,
) -> Array:  # fmt: skip
    """Which characters are cut. Empty lines stay, as paragraphs end at them."""
    cut_C = np.zeros(text_C.size, np.bool_)
    for d in range(lines_D1.size - 1):
        for line in range(lines_D1[d], lines_D1[d + 1]):
            first, stop = starts_L[line], ends_L[line]
            if first == stop:
                continue
            words = _blank_words(text_C, first, stop, properties)
            if (
                _is_shouted(text_C, first, stop, properties)
                or _is_counter(text_C, first, stop, properties, kinds, counted)
                or (words < FEWEST_WORDS and not (words and unspaced_D[d]))
                or (words <= SHORT_LINE and _cut_phrases(text_C, first, stop, properties, cut, cut_C))
            ):
                cut_C[first : min(stop + 1, texts_D1[d + 1])] = True
    return cut_C


@njit(cache=True, inline="always")
def _blank_words(text_C: Array, first: int, stop: int, properties: Array) -> int:
    words, between = 0, True
    for at in range(first, stop):
        space = properties[text_C[at]] & SPACE != 0
        words += between and not space
        between = space
    return words


@njit(cache=True, inline="always")
def _is_shouted(text_C: Array, first: int, stop: int, properties: Array) -> bool:
    """Whether a line is more than half upper case, or digits only."""
    upper, digits = 0, 0
    for at in range(first, stop):
        upper += properties[text_C[at]] & UPPER != 0
        digits += properties[text_C[at]] & DIGIT != 0
    return upper > MOST_UPPER_CASE * (stop - first) or digits == stop - first


@njit(cache=True)
def _is_counter(text_C: Array, first: int, stop: int, properties: Array, kinds: Array, counted: Array) -> bool:
    """Whether a line is a number, thousands perhaps, and what it counts, with nothing but signs around."""
    at = first
    while at < stop and not _in_word(text_C[at], kinds):
        at += 1
    if at == stop or not properties[text_C[at]] & DECIMAL:
        return False
    while at < stop and (properties[text_C[at]] & DECIMAL or text_C[at] == _COMMA or text_C[at] == _STOP):
        at += 1
    at += at < stop and lower(text_C[at]) in _THOUSANDS
    blanks = at
    while at < stop and properties[text_C[at]] & SPACE:
        at += 1
    if at == blanks:
        return False
    for p in range(counted.shape[0]):
        length = matched(text_C, at, stop, counted[p], False)
        if length:
            at += length
            while at < stop and not _in_word(text_C[at], kinds):
                at += 1
            return at == stop
    return False


@njit(cache=True, inline="always")
def _in_word(character: int, kinds: Array) -> bool:
    """What a regular expression calls a character of a word."""
    return kinds[character] in (LETTER, IDEOGRAPH) or character == _UNDERSCORE


@njit(cache=True)
def _cut_phrases(text_C: Array, first: int, stop: int, properties: Array, cut: Array, cut_C: Array) -> bool:
    """Cut the phrases of menus out of a line; whether nothing but blanks is left of it."""
    at, found = first, False
    while at < stop:
        length = matched(text_C, at, stop, cut[_IN_CART], False)
        if length:  # with a blank before
            begin = at - 1 if at > first and properties[text_C[at - 1]] & SPACE else at
            cut_C[begin : at + length] = True
            at += length
            found = True
        else:
            at += 1
    begin, end = first, stop
    while end > first and cut_C[end - 1]:
        end -= 1
    while begin < end and cut_C[begin]:
        begin += 1
    length = cut.shape[1]
    while length and not cut[_READ_MORE, length - 1]:
        length -= 1
    if end - begin >= length and matched(text_C, end - length, end, cut[_READ_MORE], False):
        at = end - length
        cut_C[at - 1 if at > begin and properties[text_C[at - 1]] & SPACE else at : end] = True
        found = True
    length = matched(text_C, begin, end, cut[_SIGN_IN], False)
    if length:
        at = begin + length
        cut_C[begin : at + 1 if at < end and properties[text_C[at]] & SPACE else at] = True
        found = True
    left = 0
    for at in range(first, stop):
        left += not cut_C[at] and properties[text_C[at]] & SPACE == 0
    return found and left == 0


# ---- pages -----------------------------------------------------------------------------------------------------------


@njit(cache=True)
def _count(
    text_C: Array, texts_D1: Array, firsts_L: Array, stops_L: Array, lines_D1: Array, properties: Array, alpha: Array,
    stop_words: Array, first_A: Array, second_A: Array,
) -> Array:  # fmt: skip
    """[8, documents]: words that blanks part, their characters, those with a letter, stop words, symbols, lines that
    are not blank, those that begin with a bullet, those that end in an ellipsis."""
    D = lines_D1.size - 1
    counts = np.zeros((8, D))
    for d in range(D):
        begin, stop = texts_D1[d], texts_D1[d + 1]
        letters = 0
        for at in range(begin, stop + 1):
            if at < stop and not properties[text_C[at]] & SPACE:
                letters += alpha[text_C[at]]
                continue
            if at > begin:
                counts[_TOKENS, d] += 1
                counts[_CHARACTERS, d] += at - begin
                counts[_ALPHABETIC, d] += letters > 0
                initial, second = lower(text_C[begin]), lower(text_C[begin + 1]) if at - begin > 1 else ASCII
                if initial < ASCII and second < ASCII and first_A[initial] & second_A[second]:
                    counts[_STOPS, d] += _is_stop_word(text_C, begin, at, stop_words)
            begin, letters = at + 1, 0
        counts[_SYMBOLS, d] = _symbols(text_C, texts_D1[d], stop)
        for line in range(lines_D1[d], lines_D1[d + 1]):
            first, end = firsts_L[line], stops_L[line]
            if first == end:
                continue
            counts[_LINES, d] += 1
            counts[_BULLETED, d] += text_C[first] in _BULLETS
            counts[_TRAILING, d] += (
                text_C[end - 1] == _ELLIPSIS
                or _are_stops(text_C, end - 3, first, end, 1)
                or _are_stops(text_C, end - 5, first, end, 2)
            )
    return counts


@njit(cache=True)
def _is_stop_word(text_C: Array, begin: int, end: int, stop_words: Array) -> bool:
    found = False
    for p in range(stop_words.shape[0]):
        found |= matched(text_C, begin, end, stop_words[p], False) == end - begin
    return found


@njit(cache=True)
def _symbols(text_C: Array, first: int, stop: int) -> int:
    """Hashes, ellipses of one character, of three full stops, and of three with blanks between, each as often as it
    stands in the text without overlap."""
    symbols, close, apart = 0, first, first
    for at in range(first, stop):
        character = text_C[at]
        if character in (_HASH, _ELLIPSIS):
            symbols += 1
        elif character == _STOP:
            if at >= close and _are_stops(text_C, at, first, stop, 1):
                symbols += 1
                close = at + 3
            if at >= apart and _are_stops(text_C, at, first, stop, 2):
                symbols += 1
                apart = at + 5
    return symbols


@njit(cache=True, inline="always")
def _are_stops(text_C: Array, at: int, first: int, stop: int, step: int) -> bool:
    """Whether three full stops stand at a place, a blank between them where `step` is 2."""
    if at < first or at + 2 * step >= stop:
        return False
    if step == 2 and (text_C[at + 1] != _BLANK or text_C[at + 3] != _BLANK):
        return False
    return text_C[at] == _STOP and text_C[at + step] == _STOP and text_C[at + 2 * step] == _STOP

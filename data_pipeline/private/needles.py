"""Which of many short strings and shapes a text holds, in one pass: the cheap test that most documents end with.

The automaton of Aho and Corasick (1975), as one table of states; twice: over UTF-8, and over what kinds of characters
follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Array: TypeAlias = npt.NDArray[Any]


# In a shape `A` stands for a capital letter of ASCII, `9` for a digit, and blanks and full stops for themselves.
_SHAPE = np.full(256, ord("x"), np.uint8)
_SHAPE[ord("A") : ord("Z") + 1] = ord("A")
_SHAPE[ord("0") : ord("9") + 1] = ord("9")
_SHAPE[[ord(" "), ord(".")]] = ord(" "), ord(".")

# The one shape that is asked for by a pattern: a long word without signs.
LONG = "[A-Za-z0-9]{26}"
_LONG = 26
_WORD = np.zeros(256, np.uint8)
_WORD[[byte for byte in range(128) if chr(byte).isalnum()]] = 1


class Needles:
    """Strings and shapes to look for."""

    def __init__(self, words: Sequence[str], shapes: Sequence[str] = ()) -> None:
        self.words, self.shapes = tuple(dict.fromkeys(words)), tuple(dict.fromkeys(shapes))
        self._of_words, self._of_shapes = _automaton(self.words), _automaton(self.shapes)
        classes, following, ranges, ends = self._of_shapes
        self._of_shapes = (classes[_SHAPE], following, ranges, (ends + len(self.words)).astype(np.uint16))
        self._all = (*self.words, *self.shapes, LONG)

    def within(self, text: str) -> frozenset[str]:
        """Those that the text holds."""
        content = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        hits = np.zeros(len(self._all), np.uint8)
        _walk(content, *self._of_words, *self._of_shapes, _WORD, hits)
        return frozenset([self._all[number] for number in hits.nonzero()[0].tolist()])


def _automaton(words: Sequence[str]) -> tuple[Array, Array, Array, Array]:
    """The class of each byte, the state that follows a state on a class, and the words that end in a state, as ranges
    of one list."""
    encoded = [word.encode() for word in words]
    used = sorted(set(b"".join(encoded)))
    classes = np.zeros(256, np.uint8)  # 0 for bytes of no word
    classes[used] = np.arange(1, len(used) + 1)
    children: list[dict[int, int]] = [{}]
    ends: list[list[int]] = [[]]
    for number, word in enumerate(encoded):
        state = 0
        for byte in classes[list(word)].tolist():
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                ends.append([])
            state = children[state][byte]
        ends[state].append(number)
    following = np.zeros((len(children), len(used) + 1), np.uint16)
    fallback = [0] * len(children)
    waiting = [0]
    for state in waiting:  # by depth, so that a fallback is complete before it is used
        if state:
            following[state] = following[fallback[state]]
            ends[state] += ends[fallback[state]]
        for byte, child in children[state].items():
            fallback[child] = int(following[state, byte]) if state else 0
            following[state, byte] = child
            waiting.append(child)
    listed = np.array([number for numbers in ends for number in numbers], np.uint16)
    return classes, following, np.cumsum([0, *map(len, ends)]).astype(np.uint32), listed


@njit(cache=True)
def _walk(
    content: Array,
    classes: Array, following: Array, ranges: Array, ends: Array,
    shape_classes: Array, shape_following: Array, shape_ranges: Array, shape_ends: Array,
    word: Array, hits: Array,
) -> None:  # fmt: skip
    state = shape = run = longest = 0
    for at in range(content.size):
        byte = content[at]
        state = following[state, classes[byte]]
        for n in range(ranges[state], ranges[state + 1]):
            hits[ends[n]] = 1
        shape = shape_following[shape, shape_classes[byte]]
        for n in range(shape_ranges[shape], shape_ranges[shape + 1]):
            hits[shape_ends[n]] = 1
        run = run + 1 if word[byte] else 0
        longest = max(longest, run)
    hits[-1] = longest >= _LONG

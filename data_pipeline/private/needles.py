"""Which of many short strings a text holds, in one pass: the cheap test that most documents end with.

The automaton of Aho and Corasick (1975) over UTF-8, as one table of states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Array: TypeAlias = npt.NDArray[Any]


class Needles:
    """Strings to look for."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(dict.fromkeys(words))
        encoded = [word.encode() for word in self.words]
        used = sorted(set(b"".join(encoded)))
        self._classes = np.zeros(256, np.uint8)  # 0 for bytes of no needle
        self._classes[used] = np.arange(1, len(used) + 1)
        children: list[dict[int, int]] = [{}]
        ends: list[list[int]] = [[]]
        for number, word in enumerate(encoded):
            state = 0
            for byte in self._classes[list(word)].tolist():
                if byte not in children[state]:
                    children[state][byte] = len(children)
                    children.append({})
                    ends.append([])
                state = children[state][byte]
            ends[state].append(number)
        self._next = np.zeros((len(children), len(used) + 1), np.uint16)
        fallback = [0] * len(children)
        waiting = [0]
        for state in waiting:  # by depth, so that a fallback is complete before it is used
            if state:
                self._next[state] = self._next[fallback[state]]
                ends[state] += ends[fallback[state]]
            for byte, child in children[state].items():
                fallback[child] = int(self._next[state, byte]) if state else 0
                self._next[state, byte] = child
                waiting.append(child)
        # The needles that end in a state, as a range of one list.
        self._ends = np.array([number for numbers in ends for number in numbers], np.uint16)
        self._ranges = np.cumsum([0, *map(len, ends)]).astype(np.uint32)

    def within(self, text: str) -> frozenset[str]:
        """Those that the text holds."""
        hits = np.zeros(len(self.words), np.uint8)
        content = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        _walk(content, self._classes, self._next, self._ranges, self._ends, hits)
        return frozenset([self.words[number] for number in hits.nonzero()[0]])


@njit(cache=True)
def _walk(content: Array, classes: Array, following: Array, ranges: Array, ends: Array, hits: Array) -> None:
    state = 0
    for at in range(content.size):
        state = following[state, classes[content[at]]]
        for n in range(ranges[state], ranges[state + 1]):
            hits[ends[n]] = 1

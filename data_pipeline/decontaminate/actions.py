"""What is done about spans: a document is dropped, or what it holds of benchmarks is cut out of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from data_pipeline.signals.characters import IDEOGRAPH, characters

Action = Literal["drop", "cut"]
Span = tuple[int, int]

REASON = "contaminated"


def decide(
    text: str, spans: Iterable[Span], action: Action, *, margin: int = 50, shortest: int = 200
) -> tuple[str, str]:
    """(reason, text): the reason why a document goes, or "" and the text that stays of it. Pure.

    spans      (start, stop) in characters, in any order, also within one another; none leaves the text as it is
    margin     characters before and behind a span that go with it, widened to whole words (of which each letter is one
               in scripts without blanks): beside a question stand its number, its choices and its answer
    shortest   characters, without the white space at its ends, that the rest must have to stay
    """
    joined = _joined(spans, len(text), margin)
    if not joined:
        return "", text
    if action == "drop":
        return REASON, text
    kept, at = [], 0
    for start, stop in joined:
        while start > at and _is_of_a_word(text[start - 1]):
            start -= 1
        while stop < len(text) and _is_of_a_word(text[stop]):
            stop += 1
        kept.append(text[at : max(start, at)])
        at = max(stop, at)
    kept.append(text[at:])
    # What stood before a span and what stood behind it are no neighbours: a paragraph ends there.
    rest = "\n\n".join(part for part in map(str.strip, kept) if part)
    return (REASON, text) if len(rest) < shortest else ("", rest)


def _is_of_a_word(character: str) -> bool:
    """Whether a character goes with the one beside it."""
    return not character.isspace() and bool(characters().kinds[ord(character)] != IDEOGRAPH)


def _joined(spans: Iterable[Span], length: int, margin: int) -> list[Span]:
    """The spans with their margins, in order, as one where they touch."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        start, stop = max(0, start - margin), min(length, stop + margin)
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined

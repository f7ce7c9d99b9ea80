"""What is done with toxicity scores: a text is scored passage by passage, as one line of abuse does not make a page.

The scores (0 to 1) come from a classifier of `classify/`; this file knows none. As in Dolma (Soldaini et al. 2024), a
passage counts as toxic above 0.4; how much of a document may be toxic before it goes is for the thresholds to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TOXIC = 0.4
_LONGEST = 1000  # characters of a passage; longer lines are cut behind a sentence
_SENTENCE_END = re.compile(r"[.!?。！？…][\"'”’)\]]*\s+|[。！？]")


@dataclass(frozen=True)
class Passage:
    """`text[start:end]`."""

    start: int
    end: int


def passages(text: str) -> list[Passage]:
    """The lines of a text that are not blank; long ones in pieces of whole sentences, or of 1,000 characters."""
    found: list[Passage] = []
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        if line.strip():
            at = start
            while end - at > _LONGEST:
                ends = [one.end() for one in _SENTENCE_END.finditer(text, at, at + _LONGEST)]
                cut = ends[-1] if ends else at + _LONGEST
                found.append(Passage(at, cut))
                at = cut
            if at < end:
                found.append(Passage(at, end))
        start = end + 1
    return found


def toxic_share(places: Sequence[Passage], scores: Sequence[float], above: float = TOXIC) -> float:
    """Share of the characters of a document that stand in toxic passages: a column of its own, 0 to 1."""
    total = sum(place.end - place.start for place in places)
    toxic = sum(place.end - place.start for place, score in zip(places, scores, strict=True) if score > above)
    return toxic / total if total else 0.0


def without_toxic(text: str, places: Sequence[Passage], scores: Sequence[float], above: float = TOXIC) -> str:
    """The text without its toxic passages and without the lines that were nothing else."""
    parts, at, emptied = [], 0, False
    for place, score in zip(places, scores, strict=True):
        if score <= above:
            continue
        parts.append(text[at : place.start])
        at = place.end
        # The line feed goes with a line of which nothing is left.
        begins = place.start == 0 or text[place.start - 1] == "\n" or (emptied and parts[-1] == "")
        emptied = begins
        if begins and text[at : at + 1] == "\n":
            at, emptied = at + 1, False
    return "".join([*parts, text[at:]])

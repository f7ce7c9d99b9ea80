"""A text without personal data and secrets, and how many items of each kind it held."""

from __future__ import annotations

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from data_pipeline.classify.language import UNKNOWN, identify
from data_pipeline.private import address, card, credentials, email, iban, national, phone, secret, wallet
from data_pipeline.private.found import KINDS, Found
from data_pipeline.private.needles import Needles
from data_pipeline.private.page import Page, plain
from data_pipeline.private.pseudonym import placeholder, pseudonym

# What the identifier of languages refuses: controls, surrogates, and the noncharacters of every plane.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
# Characters that are looked at in one go: finders hold about ten bytes for each.
LONGEST = 4_000_000
_TELLING = 20_000  # first characters of a text, which say what language it is in
_FEWEST_SURE = 0.5  # share of a text in its language that it must exceed to say anything about countries


@dataclass(frozen=True)
class Scrubbed:
    """A text without personal data and secrets.

    counts   how many items of each of `KINDS` were replaced; kinds of which there was none are missing
    """

    text: str
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """How many items were replaced."""
        return sum(self.counts.values())


def scrub(text: str, language: str = "", key: bytes = b"") -> Scrubbed:
    """Replace each item by a placeholder such as `<EMAIL>`, or with a key by a pseudonym such as `<EMAIL-3f9a12bc>`.

    The same value gets the same pseudonym wherever it stands and however it is written. `language` (ISO 639-1) says
    which countries' numbers to expect; where it is not given, it is identified once a number asks for it. Scrubbing
    twice changes nothing more. Raises ValueError where the key is shorter than 16 bytes.
    """
    if len(text) > LONGEST:
        done = [scrub(piece, language, key) for piece in _pieces(text)]
        return Scrubbed("".join(one.text for one in done), dict(sum((Counter(one.counts) for one in done), Counter())))
    page = _page(text, language)
    if not _may_hold(page):
        return Scrubbed(text)
    counts: Counter[str] = Counter()

    def replaced(finders: Finders) -> bool:
        nonlocal text, page
        found = _first_of_overlapping([one for find in finders for one in find(page)])
        if not found:
            return False
        parts, at = [], 0
        for one in found:
            parts += [text[at : one.start], pseudonym(one.kind, one.value, key) if key else placeholder(one.kind)]
            at = one.end
            counts[one.kind] += 1
        text = "".join(parts) + text[at:]
        page = _page(text, language)
        return True

    # Until nothing is found: what went first may have kept something else from being found.
    while True:
        while replaced(COMMON):
            pass
        if not replaced(RARE):
            return Scrubbed(text, dict(counts))


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that end with a line, or with a word where a line is too long."""
    start = 0
    while start < len(text):
        end = start + LONGEST
        if end < len(text):
            breaks = (text.rfind(sign, start, end) + 1 for sign in "\n ")
            end = next((place for place in breaks if place > start), end)
        yield text[start:end]
        start = end


def _page(text: str, language: str) -> Page:
    seen = plain(text)
    # Identified as finders see it, so that what was replaced has no say the next time.
    return Page(seen, NEEDLES.within(seen), _language(seen, language))


def _may_hold(page: Page) -> bool:
    """Whether any finder would look at the page: what they all ask first, asked once."""
    return bool(page.held or page.runs) or page.text.count(":") >= address.FEWEST_COLONS


Finders: TypeAlias = tuple[Callable[[Page], Iterator[Found]], ...]
NEEDLES = Needles(
    [*credentials.NEEDLES, *email.NEEDLES, *secret.NEEDLES, *iban.NEEDLES, *wallet.NEEDLES, *address.NEEDLES],
    [*iban.SHAPES, *address.SHAPES, *national.SHAPES],
)
# Addresses are the only items that many documents hold: the others look at a text in which none is left.
COMMON: Finders = (credentials.find, email.find)
RARE: Finders = (
    secret.find, iban.find, card.find, wallet.find, address.find_v6, address.find_v4, national.find, phone.find,
)  # fmt: skip


def _language(text: str, language: str) -> Callable[[], str]:
    """The language of a text, identified when it is first asked for."""

    identified: list[str] = []

    def known() -> str:
        if language and language != UNKNOWN:
            return language
        if not identified:
            code, share = identify(_CONTROLS.sub(" ", text[:_TELLING]))
            identified.append(code if share > _FEWEST_SURE else UNKNOWN)
        return identified[0]

    return known


def _first_of_overlapping(found: list[Found]) -> list[Found]:
    """Of items that share characters the one of the first kind, then the longest; in the order of the text."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda one: (KINDS.index(one.kind), one.start - one.end, one.start)):
        place = bisect(kept, one)
        if (place == 0 or kept[place - 1].end <= one.start) and (place == len(kept) or one.end <= kept[place].start):
            kept.insert(place, one)
    return kept

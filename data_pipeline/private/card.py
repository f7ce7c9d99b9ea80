"""Numbers of payment cards: the prefix and length of a scheme, usual groups, and Luhn's check digit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from data_pipeline.private.found import Found
from data_pipeline.private.luhn import luhn
from data_pipeline.private.page import Group, Page
from data_pipeline.private.surroundings import names_a_thing, stands_alone

# First and last prefix of a scheme, and its lengths (ISO/IEC 7812; the schemes' own pages).
SCHEMES = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("300", "305", (14, 16)),  # Diners Club
    ("3095", "3095", (14, 16)),
    ("36", "36", (14, 16)),
    ("38", "39", (14, 16)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "65", (16, 19)),
    ("3528", "3589", (16, 19)),  # JCB
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("81", "81", (16, 17, 18, 19)),
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("5018", "5018", (16, 17, 18, 19)),  # Maestro
    ("5020", "5020", (16, 17, 18, 19)),
    ("5038", "5038", (16, 17, 18, 19)),
    ("5893", "5893", (16, 17, 18, 19)),
    ("6304", "6304", (16, 17, 18, 19)),
    ("6759", "6763", (16, 17, 18, 19)),
    ("508", "508", (16,)),  # RuPay
    ("60", "60", (16,)),
    ("82", "82", (16,)),
    ("9792", "9792", (16,)),  # Troy
)
# How the digits are grouped; None: not at all.
GROUPS = {
    13: ((13,), (4, 3, 3, 3), (4, 4, 4, 1)),
    14: ((14,), (4, 6, 4)),
    15: ((15,), (4, 6, 5), (4, 4, 4, 3)),
    16: ((16,), (4, 4, 4, 4), (8, 8), (4, 6, 6), (6, 10)),
    17: ((17,), (4, 4, 4, 4, 1), (6, 11)),
    18: ((18,), (4, 4, 4, 4, 2), (6, 12)),
    19: ((19,), (4, 4, 4, 4, 3), (6, 13)),
}
_USUAL_GROUP = 4
# By the length of the first group, the most digits first.
_SHAPES: dict[int, list[tuple[int, ...]]] = {}
for _shape in sorted({shape for shapes in GROUPS.values() for shape in shapes}, key=sum, reverse=True):
    _SHAPES.setdefault(_shape[0], []).append(_shape)


def find(page: Page) -> Iterator[Found]:
    """Card numbers."""
    for groups in page.runs:
        if groups[-1].end - groups[0].start < min(GROUPS):
            continue
        first = 0
        while first < len(groups):
            count = _card(page.text, groups, first)
            if count:
                last = groups[first + count - 1]
                digits = "".join(group.digits for group in groups[first : first + count])
                yield Found(groups[first].start, last.end, "card", digits)
            first += count or 1


def _card(text: str, groups: list[Group], first: int) -> int:
    """How many groups from `first` on are a card number; 0 where none is."""
    for shape in _SHAPES.get(len(groups[first].digits), ()):
        here = groups[first : first + len(shape)]
        if tuple(len(group.digits) for group in here) != shape:
            continue
        separators = {text[one.end : other.start].strip(" \t\n") for one, other in itertools.pairwise(here)}
        digits = "".join(group.digits for group in here)
        around = groups[max(0, first - 1) : first] + groups[first + len(shape) : first + len(shape) + 1]
        if any(len(group.digits) == _USUAL_GROUP and len(shape) > 1 for group in around):
            continue  # a piece of a longer number
        if (
            len(separators - {""}) <= 1
            and separators <= {"", "-", "."}
            and is_card(digits)
            and stands_alone(text, here[0].start, here[-1].end)
            and not names_a_thing(text, here[0].start)
        ):
            return len(shape)
    return 0


def is_card(digits: str) -> bool:
    """Prefix, length and check digit; not one digit over and over."""
    known = any(
        first <= digits[: len(first)] and digits[: len(last)] <= last and len(digits) in lengths
        for first, last, lengths in SCHEMES
    )
    return known and len(set(digits)) > 1 and luhn(digits)

"""International bank account numbers: the length of the country (ISO 13616 registry) and the remainder modulo 97."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.private.found import Found
from data_pipeline.private.page import Page
from data_pipeline.private.surroundings import joins

LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_HEAD = re.compile(r"[A-Z]{2} ?[0-9]{2}[ \-]?[A-Z0-9]{2}")
_SMALL = re.compile(r"(?i)\biban\W{0,4}([a-z]{2} ?[0-9]{2})")
SHAPES = ("AA99", "AA 99")
NEEDLES = ("iban", "IBAN")
_SIGNS = " \t\n-."


def find(page: Page) -> Iterator[Found]:
    """Account numbers."""
    if page.held.isdisjoint((*SHAPES, *NEEDLES)):
        return
    text, at = page.text, 0
    for head in _HEAD.finditer(text):
        if head.start() >= at and (end := _end(text, head.start())):
            yield Found(head.start(), end, "iban", _compact(text[head.start() : end]))
            at = end
    if "iban" in page.held or "IBAN" in page.held:
        for head in _SMALL.finditer(text):
            if end := _end(text, head.start(1)):
                yield Found(head.start(1), end, "iban", _compact(text[head.start(1) : end]))


def _end(text: str, start: int) -> int:
    """Where the number that begins here ends; 0 where none does."""
    length = LENGTHS.get(text[start : start + 2].upper(), 0)
    if not length or (start and (joins(text[start - 1]) or text[start - 1] == "/")):
        return 0
    at, count = start, 0
    while count < length and at < len(text):
        if text[at].isalnum() and text[at].isascii():
            count += 1
        elif text[at] not in _SIGNS:
            return 0
        at += 1
    if count < length or (at < len(text) and joins(text[at])):
        return 0
    return at if is_iban(_compact(text[start:at])) else 0


def _compact(written: str) -> str:
    return "".join(filter(str.isalnum, written)).upper()


def is_iban(compact: str) -> bool:
    """The country's length, and 1 modulo 97 once the first four characters stand last and letters are numbers."""
    if LENGTHS.get(compact[:2]) != len(compact) or not compact.isascii():
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1

"""What a finder hands in, and the kinds there are."""

from __future__ import annotations

from typing import NamedTuple

# Kinds in the order of their right to characters that two finders want, and what stands in the text for each.
PLACEHOLDERS = {
    "key": "KEY",
    "credentials": "CREDENTIALS",
    "email": "EMAIL",
    "iban": "IBAN",
    "card": "CARD",
    "wallet": "WALLET",
    "ipv6": "IP",
    "ipv4": "IP",
    "national_id": "ID",
    "phone": "PHONE",
}
KINDS = tuple(PLACEHOLDERS)


class Found(NamedTuple):
    """One item: `text[start:end]` goes; `value` is its normal form, equal however it was written."""

    start: int
    end: int
    kind: str
    value: str

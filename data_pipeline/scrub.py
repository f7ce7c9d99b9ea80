"""E-mail addresses and keys out of texts: each is replaced by a placeholder and counted.

Patterns find what has the published form of a credential, and assignments of random-looking values to names such as
`secret`. They do not find names, telephone numbers or postal addresses, nor a password that reads like a word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

EMAIL_PLACEHOLDER = "<EMAIL>"
KEY_PLACEHOLDER = "<KEY>"

EMAIL = re.compile(
    r"(?<![\w.+%-])[^\W_][\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@-])",
)

# (text that every match holds, in lower case; pattern). The cheap test first: most documents hold none of them.
KEYS = tuple(
    (needle, re.compile(pattern, re.DOTALL))
    for needle, pattern in (
        # Also without its end: a cut-off key is still a key.
        (
            "private key",
            r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:.{0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|[\sA-Za-z0-9+/=:,\-]{0,20000})",
        ),
        ("akia", r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),  # AWS access key id
        ("asia", r"(?<![A-Za-z0-9])ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),  # AWS temporary access key id
        ("gh", r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{36,255}"),  # GitHub tokens
        ("github_pat_", r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{22,255}"),
        ("glpat-", r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_\-]{20,64}"),  # GitLab
        ("xox", r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9\-]{10,255}"),  # Slack
        ("aiza", r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_\-]{35}(?![A-Za-z0-9_\-])"),  # Google API key
        ("_live_", r"(?<![A-Za-z0-9])[srp]k_live_[A-Za-z0-9]{16,255}"),  # Stripe
        ("hf_", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{34,64}(?![A-Za-z0-9_])"),  # Hugging Face
        ("eyj", r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),  # JWT
    )
)

ASSIGNMENT = re.compile(
    r"(?i)(?P<name>\b[\w-]{0,40}(?:secret|passw(?:or)?d|api[_-]?key|access[_-]?key|(?:auth|access|api|bearer)[_-]?token)"
    r"[\w-]{0,20}[\"']?\s{0,4}(?::=|=>|[:=])\s{0,4}[\"']?)(?P<value>[A-Za-z0-9+/_\-]{16,512}={0,2})(?![\w(.])"
)
SECRET_NAMES = ("secret", "passw", "key", "token")
# Bits per character. Random hex has at most 4, random base64 at most 6; words and identifiers of 16 letters about 3.
FEWEST_BITS = 3.2


@dataclass(frozen=True)
class Scrubbed:
    """A text without addresses and keys, and how many of each were replaced."""

    text: str
    emails: int
    keys: int


def scrub(text: str) -> Scrubbed:
    """Replace e-mail addresses by `<EMAIL>`, keys and secrets by `<KEY>`. Scrubbing twice changes nothing more."""
    keys = emails = 0
    folded = text.lower()
    for needle, pattern in KEYS:
        if needle in folded:
            text, count = pattern.subn(KEY_PLACEHOLDER, text)
            keys += count
    if any(name in folded for name in SECRET_NAMES):
        text, count = _scrub_assignments(text)
        keys += count
    if "@" in text:
        text, emails = EMAIL.subn(EMAIL_PLACEHOLDER, text)
    return Scrubbed(text, emails, keys)


def _scrub_assignments(text: str) -> tuple[str, int]:
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if not _looks_random(match["value"]):
            return match[0]
        count += 1
        return match["name"] + KEY_PLACEHOLDER

    return ASSIGNMENT.sub(replace, text), count


def _looks_random(value: str) -> bool:
    """Letters and digits mixed, with the entropy of a random string: not an identifier, a path or a repeated filler."""
    if not (any(c.isdigit() for c in value) and any(c.isalpha() for c in value)):
        return False
    counts = Counter(value)
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return bits >= FEWEST_BITS

"""E-mail addresses, also those that are written so that machines do not find them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.private.domains import is_top_level
from data_pipeline.private.found import Found
from data_pipeline.private.page import Page
from data_pipeline.private.surroundings import JOINED

LONGEST_LOCAL = 64  # RFC 5321

_ESCAPED = re.compile(r"%40|&#0*64;|&#[xX]40;|&commat;")
_LOCAL = re.compile(r"[\w.!#$&'*+/=?^`{|}~%-]*")
_UNSPACED = re.compile("[\u0e00-\uffef]+(?![\\s\\S]*[\u0e00-\uffef])")
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_DOMAIN = re.compile(
    rf"(?:{_LABEL}\.){{1,8}}(?:xn--[a-z0-9-]{{2,59}}|[A-Za-z]{{2,24}}|(?:(?![A-Za-z])[^\W\d_]){{2,24}})", re.IGNORECASE
)
_NOT_AFTER = re.compile(rf"{JOINED}|@|-\w|\(\S|\.(?:[a-z]+\(|service\b)")

# `name [at] host [dot] org`: the words in brackets, between other signs, or in capitals. Lower case without a sign is
# a sentence more often than an address.
_OPEN, _CLOSE = r"[\[({<_*-]{1,3}", r"[\])}>_*-]{1,3}"
_AT = re.compile(rf"{_OPEN}\s?(?:[Aa][Tt]|ät|arroba|[@a])\s?{_CLOSE}")
_AT_CAPITALS = re.compile(" AT ")
_DOT = rf"(?:\s?{_OPEN}\s?(?:[Dd][Oo][Tt]|punkt|punto|point|ponto|\.)\s?{_CLOSE}\s?|\s(?:DOT|dot)\s)"
_DOT_WORD = re.compile(_DOT)
_BEFORE_AT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.+-]{{0,63}}(?:{_DOT}[A-Za-z0-9_+-]{{1,32}}){{0,2}}\s?$")
_AFTER_AT = re.compile(
    rf"\s?((?:[A-Za-z0-9][A-Za-z0-9-]{{0,61}}(?:\.|{_DOT})){{1,4}}[A-Za-z]{{2,24}})(?![A-Za-z0-9_@])"
)
_HIDING = (
    "at]", "at)", "at}", "at>", "-at-", "_at_", "AT]", "AT)", "AT}", "At]", "At)", "at ]", "at )", "AT ]", "ät]",
    "ät)", "arroba",
    "@]", "@)", " AT ", "(a)", "[a]",
)  # fmt: skip

# In plain words only where the name or the host can be nothing else.
_SPOKEN = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._+-]{0,63}) at ((?:[A-Za-z0-9-]{1,63} dot ){1,3}[A-Za-z]{2,24})(?![A-Za-z0-9_@])"
)
_PROVIDERS = re.compile(
    r"(?i)(?:gmail|googlemail|yahoo|hotmail|outlook|icloud|proton(?:mail)?|gmx|aol|live|msn|yandex|qq) dot "
)
_ESCAPES = ("%40", "&#64", "&#0", "&#x40", "&#X40", "&commat;")
NEEDLES = ("@", " dot ", *_ESCAPES, *_HIDING)


def find(page: Page) -> Iterator[Found]:
    """Addresses."""
    text = page.text
    if page.held.isdisjoint(NEEDLES):
        return
    at = text.find("@")
    while at >= 0:
        if found := _around(text, at, at + 1):
            yield found
        at = text.find("@", at + 1)
    if not page.held.isdisjoint(_ESCAPES):
        for sign in _ESCAPED.finditer(text):
            if found := _around(text, sign.start(), sign.end()):
                yield found
    if " dot " in page.held:
        for match in _SPOKEN.finditer(text):
            local, domain = match[1].lower(), match[2].lower().replace(" dot ", ".")
            if (re.search("[0-9._]", local) or _PROVIDERS.match(match[2])) and is_top_level(domain.rsplit(".", 1)[-1]):
                yield Found(match.start(), match.end(), "email", f"{local}@{domain}")
    if not page.held.isdisjoint(_HIDING):
        yield from _hidden(text)


def _around(text: str, at: int, after: int) -> Found | None:
    """The address about an at sign."""
    domain = _DOMAIN.match(text, after)
    if domain is None:
        return None
    end = _end(text, domain)
    # What begins no local part is punctuation before it, or belongs to a URL or an assignment.
    backwards = _LOCAL.match(text[max(0, at - LONGEST_LOCAL) : at][::-1])
    assert backwards  # nothing is a match, too
    local = backwards[0][::-1]
    local = local[max(local.rfind(sign) + 1 for sign in "/=?&|`") :]
    if (unspaced := _UNSPACED.search(local)) and unspaced.end() < len(local):
        local = local[unspaced.end() :]
    local = local.lstrip(".!#$&'*+/=?^`{|}~%-_") or (local if local.strip("_") else "")
    if not local or end is None:
        return None
    if local.endswith(".") and not text[at - 2 : at - 1].isalnum():
        return None
    start = at - len(local)
    if start > 0 and text[start - 1] in "@/" and text[start - 2 : start - 1] not in ("/", ":", ""):
        return None
    if text[end : end + 1] == ":" and local == "git":  # a repository over ssh
        return None
    return Found(start, end, "email", f"{local}@{text[after:end]}".lower())


def _end(text: str, domain: re.Match[str]) -> int | None:
    """Where the domain ends: at the last label that can end one; None where there is none."""
    labels = domain[0].split(".")
    end = domain.end()
    while len(labels) > 1:
        if is_top_level(labels[-1]):
            return None if _NOT_AFTER.match(text, end) else end
        # `ann@post.example.Then`: a full stop without a blank after it
        if not labels[-1][0].isupper() or labels[-2][0].isupper():
            return None
        end -= len(labels.pop()) + 1
        if len(labels) > 1 and is_top_level(labels[-1]):
            return end
    return None


def _hidden(text: str) -> Iterator[Found]:
    for at in (*_AT.finditer(text), *_AT_CAPITALS.finditer(text)):
        after = _AFTER_AT.match(text, at.end())
        begin = max(0, at.start() - 2 * LONGEST_LOCAL)
        before = after and _BEFORE_AT.search(text[begin : at.start()])
        if not after or not before:
            continue
        local, domain = (_DOT_WORD.sub(".", part).strip().lower() for part in (before[0], after[1]))
        if is_top_level(domain.rsplit(".", 1)[-1]):
            yield Found(begin + before.start(), after.end(1), "email", f"{local}@{domain}")

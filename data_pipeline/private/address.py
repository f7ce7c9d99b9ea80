"""Public addresses of the Internet Protocol, version 4 and 6.

Four numbers with dots are as often a version, a section or an object identifier. What stands before them decides; where
nothing does, the size of the numbers: those of versions are small.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from data_pipeline.private.found import Found
from data_pipeline.private.page import Page
from data_pipeline.private.surroundings import JOINED, before, joins

SHAPES = tuple(f"9.{second}.{third}.9" for second in ("9", "99", "999") for third in ("9", "99", "999"))
_V4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_V4_AFTER = re.compile(rf"{JOINED}|[%@]|\.{JOINED}|-(?![0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]{{1,3}}\.)\w|[+~]\w")
_NETWORK = re.compile("/([0-9]{1,3})(?![0-9])")
NEEDLES = ("::",)
FEWEST_COLONS = 7  # of an address without `::`
_V6 = re.compile(r"[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}")

_VERSION = re.compile(
    r"(?i)(?:\b(?:v|ver|versions?|versión|versione|versão|versie|wersj[aię]|verze|sürüm|верси[яию]|fassung|rel|releases?|rev|revision"
    r"|build|firmware|driver|kernel|patch|update[ds]?|upgrad\w+|downgrad\w+|sections?|sec|chapter|clause|paragraph|figure|fig|table"
    r"|appendix|step|item|rule|abschnitt|kapitel|sección|capítulo|oid|asn|edition|rfc|since|requires?|needs?|schema|api|sdk|svn)"
    r"\b\.?(?:\s?(?:is|was|no|number|nr|from|to|than|with|of|is now)\b\.?)?|版本|バージョン|버전|第|§|[=<>!~^]="
    r"|[~^])[\s:=\"'(`]{0,4}$"
)
_HOST = re.compile(
    r"(?i)(?:\b(?:ipv?4?|ip-?adres\w*|ip address|addr|address(?:es)?|adres\w*|dirección|indirizzo|endereço"
    r"|hosts?|servers?|serveur|servidor"
    r"|ping|ssh|telnet|traceroute|whois|nslookup|dig|curl|wget|scp|dns|nameservers?|resolver|gateway|router|peer|client|inet|src|dst"
    r"|source|destination|remote|proxy|listen|bind|route|subnet|netmask|packets?|traffic|login|logged|connect\w*|forwarded(?:-for)?|real-ip|visitor|attacker"
    r"|block(?:ed)?|ban(?:ned)?|deny|allow|адрес|сервер|хост|IP地址|地址|アドレス|주소)\b[^\n.0-9]{0,12}|://(?:[^\s/@]{1,40}@)?|\bIP\w{0,2}\W{0,3})$"
)
_HEX = frozenset("0123456789abcdefABCDEF")
_LARGE = 32  # numbers below are usual in versions
_FEWEST_LARGE = 2
_LARGEST = 64  # what one of an address reaches: 255 of 256 do, where all are as likely

# 2000::/3 without what is set aside for documentation and for protocols (RFC 3849, 9637, 2928).
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NOT_PERSONAL_V6 = tuple(map(ipaddress.ip_network, ("2001:db8::/32", "3fff::/20", "2001:2::/48", "2001:10::/28")))


def find_v4(page: Page) -> Iterator[Found]:
    """Public IPv4 addresses."""
    text = page.text
    if page.held.isdisjoint(SHAPES):
        return
    for match in _V4.finditer(text):
        start, end = match.span()
        if (start and (joins(text[start - 1]) or text[start - 1] in ".-")) or _V4_AFTER.match(text, end):
            continue
        parts = match[0].split(".")
        if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
            continue
        if _is_public(match[0]) and not _is_network(text, match) and _is_host(text, start, list(map(int, parts))):
            yield Found(start, end, "ipv4", match[0])


def _is_public(address: str) -> bool:
    parsed = ipaddress.IPv4Address(address)
    return parsed.is_global and not parsed.is_multicast and not address.endswith(".255.255")


def _is_network(text: str, match: re.Match[str]) -> bool:
    """`81.2.69.0/24` names a network, not somebody's machine."""
    size = _NETWORK.match(text, match.end())
    if size is None or int(size[1]) > 32:
        return False
    return int(ipaddress.IPv4Address(match[0])) & ((1 << (32 - int(size[1]))) - 1) == 0 and int(size[1]) < 32


def _is_host(text: str, start: int, parts: list[int]) -> bool:
    words = before(text, start)
    if _VERSION.search(words):
        return False
    if _HOST.search(words):
        return True
    large = sum(part >= _LARGE for part in parts)
    return large >= _FEWEST_LARGE + (0 in parts) and max(parts) >= _LARGEST


def find_v6(page: Page) -> Iterator[Found]:
    """Public IPv6 addresses."""
    text = page.text
    if "::" not in page.held and text.count(":") < FEWEST_COLONS:
        return
    for match in _V6.finditer(text):
        start, end = match.span()
        value = match[0]
        front = text[max(0, start - 2) : start]
        if front and (
            joins(front[-1]) or front[-1] in ".-" or (front[-1] == ":" and (front == "::" or front[0] in _HEX))
        ):
            continue
        if value.endswith(":") and not value.endswith("::"):  # the colon of a sentence
            value, end = value[:-1], end - 1
        if end < len(text) and (joins(text[end]) or text[end] == ":"):
            continue
        try:
            address = ipaddress.IPv6Address(value)
        except ValueError:
            continue
        if address not in _GLOBAL_V6 or any(address in network for network in _NOT_PERSONAL_V6):
            continue
        size = _NETWORK.match(text, end)
        if size and int(size[1]) < 128 and int(address) & ((1 << (128 - int(size[1]))) - 1) == 0:
            continue
        yield Found(start, end, "ipv6", address.compressed)

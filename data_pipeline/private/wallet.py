"""Addresses of crypto wallets: Bitcoin by its check sums, Ethereum by its form and the words before it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from data_pipeline.private.found import Found
from data_pipeline.private.needles import LONG
from data_pipeline.private.page import Page
from data_pipeline.private.surroundings import before, joins

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BITCOIN = re.compile(rf"[13][{_BASE58}]{{25,34}}(?![A-Za-z0-9])")
_SEGWIT = re.compile(rf"(?<![A-Za-z0-9])(?:bc1[{_BECH32}]{{38,71}}|BC1[{_BECH32.upper()}]{{38,71}})(?![A-Za-z0-9])")
_ETHEREUM = re.compile(r"(?<![A-Za-z0-9])0x[0-9a-fA-F]{40}(?![A-Za-z0-9])")
_WALLET = re.compile(
    r"(?i)\b(?:eth|ether|ethereum|wallet|address|donat\w*|send|pay|usdt|usdc|erc-?20|polygon|metamask)\b"
)
NEEDLES = ("bc1", "BC1", "0x")
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def find(page: Page) -> Iterator[Found]:
    """Wallet addresses."""
    text = page.text
    for match in _BITCOIN.finditer(text) if LONG in page.held else ():
        if not joins(text[match.start() - 1 : match.start()] or " ") and is_bitcoin(match[0]):
            yield Found(match.start(), match.end(), "wallet", match[0])
    for match in _SEGWIT.finditer(text) if not page.held.isdisjoint(("bc1", "BC1")) else ():
        if is_segwit(match[0].lower()):
            yield Found(match.start(), match.end(), "wallet", match[0].lower())
    for match in _ETHEREUM.finditer(text) if "0x" in page.held else ():
        mixed = match[0][2:] not in (match[0][2:].lower(), match[0][2:].upper())
        if mixed or _WALLET.search(before(text, match.start())):
            yield Found(match.start(), match.end(), "wallet", match[0].lower())


def is_bitcoin(address: str) -> bool:
    """Base58Check: 21 bytes and the first four of their doubled SHA-256."""
    number = 0
    for character in address:
        number = number * 58 + _BASE58.index(character)
    if number >= 1 << 200:
        return False
    content = number.to_bytes(25, "big")
    check = hashlib.sha256(hashlib.sha256(content[:21]).digest()).digest()[:4]
    return check == content[21:] and content[0] in (0, 5)


def is_segwit(address: str) -> bool:
    """The check sum of BIP 173 or BIP 350."""
    values = [3, 3, 0, 2, 3, *map(_BECH32.index, address[3:])]  # "bc", spread out
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            if top >> bit & 1:
                check ^= generator
    return check in (1, 0x2BC830A3)

"""What stands around a value and says what it is, or that it is something else."""

from __future__ import annotations

import re

# A number after one of these is the number of a thing.
THINGS = re.compile(
    r"(?i)(?:\b(?:isbn(?:-1[03])?|issn|doi|arxiv|pmid|sku|upc|ean|gtin|asin|mpn|p/?n|s/?n|oid|imei|part|serial|model|item|product"
    r"|article|order|invoice|tracking|batch|lot|ref|reference|ticket|case|bug|issue|rfc|cve|patent|catalog(?:ue)?|revision"
    r"|version|build|release|commit|checksum|hash|uuid|guid|timestamp|epoch|offset|teile?|artikel|bestell|rechnungs?"
    r"|serien|pièce|commande|facture|pedido|factura|pieza|ordine|fattura|codice articolo|артикул|заказ|счет)"
    r"(?:[ _-]?(?:no|nr|num|number|nummer|numéro|número|numero|id|code|n[º°]))?|\bn[º°]|#)[\s.:#=\"'(-]{0,6}$"
)
MONEY_BEFORE = re.compile(r"(?:[$€£¥₹₩₽]|\b(?:EUR|USD|GBP|CHF|JPY|CNY|INR|BRL|RUB|PLN|SEK|NOK|DKK|Rs\.?|R\$))\s?$")
MONEY_AFTER = re.compile(
    r"\s?(?:[$€£¥₹₩₽%°]|(?:EUR|USD|GBP|CHF|JPY|CNY|INR|BRL|RUB|PLN|SEK|NOK|DKK|kr|zł|bytes?|euros?|dollars?)\b)"
)

_REACH = 48


# A letter or digit that continues a word, as a pattern: not of scripts that put no blanks between words.
JOINED = r"(?:(?![\u0e00-\uffef])\w)"


def joins(sign: str) -> bool:
    """Whether a character continues the word or number that it touches."""
    return sign == "_" or (sign.isalnum() and (sign < "\u0e00" or sign.isdecimal()))


def before(text: str, start: int, reach: int = _REACH) -> str:
    """The characters in front of a position."""
    return text[max(0, start - reach) : start]


def names_a_thing(text: str, start: int) -> bool:
    """Whether the words in front say that a number is that of a part, an order, a book."""
    return THINGS.search(before(text, start, 32)) is not None


def is_amount(text: str, start: int, end: int) -> bool:
    """Whether a number is money or a quantity."""
    return MONEY_BEFORE.search(before(text, start, 6)) is not None or MONEY_AFTER.match(text, end) is not None


def stands_alone(text: str, start: int, end: int) -> bool:
    """Whether `text[start:end]` is no part of a longer number, name, path or file name."""
    return _free_before(text, start) and _free_after(text, end)


def _free_before(text: str, start: int) -> bool:
    if start == 0:
        return True
    sign = text[start - 1]
    if joins(sign):
        return False
    if sign in "-/\\%&~^*$€£#@+":
        return False
    if sign in ".,":
        return start > 1 and not text[start - 2].isdecimal() and not text[start - 2].isspace()
    return True


def _free_after(text: str, end: int) -> bool:
    if end >= len(text):
        return True
    sign = text[end]
    if joins(sign):
        return False
    if sign in "%€@\\":
        return False
    if sign in "-/.,:+":
        return end + 1 >= len(text) or not joins(text[end + 1]) or (sign in ",:" and not text[end + 1].isdecimal())
    return True

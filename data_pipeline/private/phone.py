"""Telephone numbers: international ones, and those written as in the countries of the document's language.

Candidates come from their form; `phonenumbers`, the numbering plans of the world in Google's library, says which exist.
A number without `+` needs more: a word that announces it, or the groups that people write and tables of numbers do not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from data_pipeline.private import countries
from data_pipeline.private.found import Found
from data_pipeline.private.page import Group, Page
from data_pipeline.private.surroundings import before, is_amount, names_a_thing

FEWEST_DIGITS, MOST_DIGITS = 7, 15  # E.164, with the country code

# Words that announce a number, whole and by how they begin.
_LABELS = frozenset((
    "tel", "ph", "fax", "cell", "cep", "hp", "gsm", "tlf", "sms", "bel", "bellen", "call", "called", "calling",
    "calls", "ring", "dial", "dialing", "texted", "signal", "viber", "telegram", "reception", "landline",
    "switchboard", "number", "numéro", "número", "numero", "numer", "numer", "nummer", "nr", "phone", "handy",
    "apparat", "appelle", "appeler", "appelez", "appeler", "joindre", "portable", "ligue", "liga", "ligar", "rufen",
    "ruf", "ara", "arayın", "reach", "reached",
))  # fmt: skip
_STEMS = (
    "tel_",
    "tele", "télé", "telé", "phone", "mobi", "mobil", "móvi", "móvei", "cellph", "cellul", "celul", "hotline",
    "helpline", "whatsapp",
    "contact", "kontakt", "contatt", "contat", "voicemail", "anruf", "rufnummer", "durchwahl", "erreich", "festnetz",
    "appel", "llam",
    "llám", "chiam", "zadzwo", "komórk", "volej", "volat", "puhel", "soit", "ring", "hív", "sunați", "numărul",
    "hubungi", "telp",
    "gọi", "thoại", "тел", "моб", "факс", "звон", "позвон", "номер", "τηλ", "κιν", "טלפון", "נייד", "פקס", "هاتف",
    "الهاتف", "جوال", "تلفن",
    "موبایل", "موبايل", "फ", "मोबाइल", "ফোন",
)  # fmt: skip
_KEYS = ("_phone", "_tel", "_mobile", "_fax")  # of tables and forms
# In scripts without blanks between words, and signs.
_UNSPACED = ("โทร", "电话", "電話", "手机", "手機", "传真", "传眞", "联系", "致电", "拨打", "携帯", "ファックス",
"連絡",
"전화",
"휴대폰",
"연락처",
"핸드폰", "팩스",
             *"☎☏📞📱📠✆")  # fmt: skip
# Words that announce one only right before it, with a colon.
_PLACES = re.compile(
    r"(?i)\b(?:home|work|office|direct|private?|privat|büro|bureau|domicile|casa|ufficio|oficina|p|t|m|f|w|h)\.?:\s?$"
)
_WORD = re.compile(r"[^\W\d](?:[\w]*[^\W\d_])?")  # `once_cell` is no `cell`
_LABEL_REACH = 32  # characters from the begin of the announcement to the number
# Numbers of other things, which the word `number` alone would announce.
_DATE = re.compile(r"(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-[0-3][0-9](?![0-9])")
_OTHERS = re.compile(
    r"(?i)\b(?:account|customer|client|member|policy|claim|employee|student|registration|licen[cs]e|confirmation|document|file"
    r"|record|routing|vat|inode|port|line|page|magic|sequence|random|telegram id|chat|kunden|konto|vertrags|mitglieds)"
    r"[ -]?(?:no|nr|num|number|nummer|id)s?\b[\s.:#=]{0,4}(?:is |of )?$"
)
_LABEL_AFTER = re.compile(r"(?i)\s?[(\[](?:tel|phone|fax|mobile?|mobil|cell|office|home|work|direct|privat|handy)\b")
_ELSE = re.compile(
    "|".join(
        (
            # Network addresses, but not telephone numbers in pairs; American postal codes; the years of a life.
            r"(?!0)[0-9]{1,3}(?:\.(?!0[0-9])[0-9]{1,3}){3}(?![.0-9])(?<!\.[0-9]{2}\.[0-9]{2}\.[0-9]{2})",
            r"[0-9]{5}-[0-9]{4}(?![\-0-9])",
            r"(?:1[0-9]|20)[0-9]{2} ?-{1,2} ?[12][0-9]{3}(?![\-0-9])",
            # Dates, with the year first or last.
            r"(?:19|20)[0-9]{2}([-./ ])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12][0-9]|3[01])(?![0-9])",
            r"(?:0?[1-9]|[12][0-9]|3[01])([-./ ])(?:0?[1-9]|[12][0-9]|3[01])\2(?:19|20)[0-9]{2}(?![0-9])",
        )
    )
)
_EXTENSION = re.compile(
    r"(?i)(?:\s?,?\s?(?:ext\.?|extension|poste|int\.?|durchwahl|anexo)\s?:?\s?|\s?x)[0-9]{1,6}(?![\w])"
)
_AMERICAN = re.compile(
    r"(?:1(?:[ .\-]|(?=\()))?(?:\([2-9][0-9]{2}\)[ .\-]{0,2}[0-9]{3}[ .\-][0-9]{4}"
    r"|[2-9][0-9]{2}([ .\-])[0-9]{3}\1[0-9]{4})"
)
_AMERICAN_PLANS = ("US", "CA")

# How numbers without an international prefix look where no word announces them. A zero leads out of most exchanges.
_TRUNK = re.compile(
    r"\(0[0-9]{1,5}\)[ ./\-]{0,3}[0-9]{2,9}(?:[ .\-/]{1,3}[0-9]{2,5}){0,4}"
    r"|0[0-9]{1,5}(?: ?/ ?| - |[ \-/])[0-9]{2,8}(?:[ \-][0-9]{2,5}){0,4}"
    r"|0[0-9](?:\.[0-9]{2}){4}|0[0-9](?:-[0-9]{2}){4}|0[0-9]{2,3}(?:\.[0-9]{3,4}){2}"
)
# Languages whose countries have a shape of their own.
_SHAPES = {
    "es": re.compile(r"[6-9][0-9]{2}[ .\-][0-9]{2}[ .\-][0-9]{2}[ .\-][0-9]{2}|[67][0-9]{2}-[0-9]{3}-[0-9]{3}"),
    "pt": re.compile(
        r"\([1-9]{2}\) ?9?[0-9]{4}[ \-][0-9]{4}|[1-9]{2} 9[0-9]{4}-[0-9]{4}"
        r"|9[1236][0-9] ?[0-9]{3} ?[0-9]{3}"
    ),
    "it": re.compile(
        r"3[0-9]{2}[ .\-/][0-9]{3}[ .\-]?[0-9]{4}|3[0-9]{2}[ .\-/][0-9]{6,7}"
        r"|3[0-9]{2} [0-9]{2} [0-9]{2} [0-9]{3}"
    ),
    "ru": re.compile(r"8[ \-]?\(?[3489][0-9]{2}\)?[ \-]?[0-9]{3}[ \-]?[0-9]{2}[ \-]?[0-9]{2}"),
    "zh": re.compile(
        r"1[3-9][0-9]{9}|1[3-9][0-9][ \-][0-9]{4}[ \-][0-9]{4}"
        r"|\(?0[1-9][0-9]{1,2}\)?[ \-]?[2-8][0-9]{6,7}"
    ),
    "hi": re.compile(r"[6-9][0-9]{4}[ \-][0-9]{5}|[6-9][0-9]{9}"),
    "pl": re.compile(r"[4-8][0-9]{2}-[0-9]{3}-[0-9]{3}|\(?[1-9][0-9]\)? [0-9]{3}[ \-][0-9]{2}[ \-][0-9]{2}"),
    "ko": re.compile(r"01[016789][0-9]{7,8}|1[5-8][0-9]{2}-[0-9]{4}"),
}  # fmt: skip
# A bare row of digits after a zero: of mobile telephones in the largest countries of the language.
_HOME = 2
_UNGROUPED = re.compile(r"0[1-9][0-9]{8,10}")


def find(page: Page) -> Iterator[Found]:
    """Telephone numbers; the language is asked for only where a number could be a national one."""
    for groups in page.runs:
        first = 0
        while first < len(groups):
            found, taken = _at(page.text, groups, first, page.language)
            if found:
                yield found
            first += taken or 1


def _at(text: str, groups: list[Group], first: int, language: Callable[[], str]) -> tuple[Found | None, int]:
    """The number that begins at a group, and how many groups it has."""
    start = groups[first].start
    plus = _plus(text, start)
    if plus is not None:
        return _international(text, groups, first, plus)
    if (
        groups[first].digits.startswith("00")
        and _begins(text, start, label=True)
        and len(groups[first].digits) > 2 - (first + 1 < len(groups))
    ):
        found, taken = _international(text, groups, first, start, exit_code=2)
        if found:
            return found, taken
    return _national(text, groups, first, language)


def _plus(text: str, start: int) -> int | None:
    """Where the plus sign of a number is whose first digit is here."""
    at = start - 1
    while at >= 0 and start - at <= 3 and text[at] in " (":
        at -= 1
    if at < 0 or text[at] != "+":
        return None
    if at and ((text[at - 1].isascii() and text[at - 1].isalnum()) or text[at - 1] in "+_^*"):
        return None
    return at - 1 if at and text[at - 1] == "(" and ")" in text[start : start + 5] else at


def _international(
    text: str, groups: list[Group], first: int, begin: int, exit_code: int = 0
) -> tuple[Found | None, int]:
    counts = list(_counts(text, groups, first, MOST_DIGITS + exit_code))
    if not counts:
        return None, 0
    best = None
    for count in counts:
        number = _parsed("+" + _joined(groups, first, count)[exit_code:], None)
        if number is not None and _is_valid(number):
            best = count, number
            break
        if number is None or best is not None or exit_code or not _is_possible(number):
            continue
        if _labelled(text, begin) or _american(text, groups, first, count):
            best = count, number
    if best is None:
        return None, 0
    count, number = best
    return _found(text, begin, groups[first + count - 1].end, number), count


def _american(text: str, groups: list[Group], first: int, count: int) -> bool:
    """`+1 (555) 123-4567`: the groups of a number that no plan holds, as people invent them."""
    lengths = tuple(len(group.digits) for group in groups[first : first + count])
    return lengths in ((1, 3, 3, 4), (2, 3, 3, 4))


def _counts(text: str, groups: list[Group], first: int, most: int) -> Iterator[int]:
    """How many groups a number may have, the most first: not beyond a wide gap, and ending where a number can end."""
    total, last = 0, first
    while last < len(groups):
        total += len(groups[last].digits)
        if total > most or (last > first and _parts(text[groups[last - 1].end : groups[last].start])):
            break
        last += 1
    for end in range(last, first, -1):
        if sum(len(group.digits) for group in groups[first:end]) < FEWEST_DIGITS:
            return
        if _ends(text, groups[end - 1].end):
            yield end - first


def _parts(gap: str) -> bool:
    """Whether what stands between two groups is more than people write within a number."""
    signs = gap.strip(" \t\n")
    return (
        "\t" in gap
        or ("." in gap and " " in gap)
        or gap.count(" ") > 3
        or signs not in ("", "-", ".", "/", "(", ")", ")-", ")/", ").", "/(", "-(", ".(", ") (")
    )


def _ends(text: str, end: int) -> bool:
    if end >= len(text):
        return True
    sign, then = text[end], text[end + 1 : end + 2]
    if sign.isalnum():
        return (sign >= "\u0e00" and not sign.isdecimal()) or _EXTENSION.match(text, end) is not None
    return not (
        sign in "_%@\\"
        or (sign in "-.:/" and then.isdecimal())
        or (sign in "-/" and then.isalpha())
        or (sign == "." and then.islower())
    )


def _national(text: str, groups: list[Group], first: int, language: Callable[[], str]) -> tuple[Found | None, int]:
    start = groups[first].start
    begin = start - 1 if start and text[start - 1] == "(" else start
    if not _begins(text, begin, label=True):
        return None, 0
    label = _labelled(text, begin)
    american = _AMERICAN.match(text, begin)
    if not label and american is None and not _looks_national(text, begin):
        return None, 0
    if not _begins(text, begin, label) or names_a_thing(text, begin) or _ELSE.match(text, start):
        return None, 0
    if _OTHERS.search(before(text, begin)):
        return None, 0
    count = sum(group.end <= american.end() for group in groups[first:]) if american else 0
    if american and not label and " " in (american[1] or "") and _embedded(text, groups, first, count):
        return None, 0
    if american and _ends(text, american.end()) and not is_amount(text, begin, american.end()):
        number = next(
            (one for plan in _AMERICAN_PLANS if (one := _parsed(american[0], plan)) is not None and _is_valid(one)),
            None,
        )
        # As people invent them: no plan holds the area code 555, but its shape says enough.
        if number is None and (label or american[0].startswith(("(", "1 (", "1-(", "555-"))):
            number = _parsed(american[0], "US")
        if number is not None:
            return _found(text, begin, american.end(), number), count
    plans = countries.of(language()) or _plans_of_shape(text, begin)
    for count in _counts(text, groups, first, MOST_DIGITS):
        end = groups[first + count - 1].end
        if is_amount(text, begin, end) or _DATE.search(text, begin, end):
            continue
        announced = label or _LABEL_AFTER.match(text, end)
        if not announced and (_embedded(text, groups, first, count) or not _shaped(text, begin, end, language())):
            continue
        for plan in (*plans, *(countries.LARGEST if label or not countries.of(language()) else ())):
            number = _parsed(_joined(groups, first, count), plan)
            if number is None or not _is_valid(number):
                continue
            if (
                announced
                or count > 1
                or not text.startswith("0", start)
                or (plan in plans[:_HOME] and _is_mobile(number))
            ):
                return _found(text, begin, end, number), count
    return None, 0


def _embedded(text: str, groups: list[Group], first: int, count: int) -> bool:
    """Whether the groups go on before or after as they do within: a piece of a longer number, or of a table."""
    inner = {text[one.end : other.start] for one, other in itertools.pairwise(groups[first : first + count])}
    front = text[groups[first - 1].end : groups[first].start] if first else ""
    rear = text[groups[first + count - 1].end : groups[first + count].start] if first + count < len(groups) else ""
    return front in inner or rear in inner


def _plans_of_shape(text: str, begin: int) -> tuple[str, ...]:
    """The countries of the languages that have a shape with brackets for what begins here."""
    if "(" not in text[begin : begin + 4]:
        return ()
    return tuple(plan for other, shape in _SHAPES.items() if shape.match(text, begin) for plan in countries.of(other))


def _looks_national(text: str, begin: int) -> bool:
    """Whether any language has a shape for what begins here; cheap, before anything else is asked."""
    return (
        _TRUNK.match(text, begin) is not None
        or _UNGROUPED.match(text, begin) is not None
        or any(shape.match(text, begin) for shape in _SHAPES.values())
    )


def _begins(text: str, begin: int, label: bool) -> bool:
    if begin == 0:
        return True
    sign = text[begin - 1]
    if sign.isalnum():
        return sign >= "\u0e00" and not sign.isdecimal()
    if sign == ",":
        return not text[begin - 2 : begin - 1].isdecimal()
    if sign in ".-:=":
        return (label and not text[begin - 2 : begin - 1].isdecimal()) or (
            sign in ":=" and not text[begin - 2 : begin - 1].isdecimal()
        )
    return sign not in "_/\\%&~^*$€£#@+"


def _shaped(text: str, begin: int, end: int, language: str) -> bool:
    """Whether the number has a form that needs no announcement in a language."""
    if (match := _TRUNK.match(text, begin)) and match.end() >= end and len(set(re.sub("[^0-9]", "", match[0]))) > 3:
        return True
    if not countries.of(language) and _plans_of_shape(text, begin):
        return any(shape.fullmatch(text, begin, end) for shape in _SHAPES.values())
    shape = _SHAPES.get("hi" if countries.of(language)[:1] == ("IN",) else language)
    if shape and shape.fullmatch(text, begin, end):
        return True
    return _UNGROUPED.fullmatch(text, begin, end) is not None and bool(countries.of(language))


def _labelled(text: str, begin: int) -> bool:
    """Whether a word shortly before announces a telephone number, with no other number between."""
    front = before(text, begin, _LABEL_REACH)
    front = front.replace("number of", "")
    front = front[max(front.rfind("\n\n"), *(front.rfind(digit) for digit in "0123456789")) + 1 :]
    if any(word in _LABELS or word.startswith(_STEMS) or word.endswith(_KEYS) for word in _WORD.findall(front.lower())):
        return True
    return _PLACES.search(front) is not None or (not front.isascii() and any(map(front.__contains__, _UNSPACED)))


def _joined(groups: list[Group], first: int, count: int) -> str:
    return "".join(group.digits for group in groups[first : first + count])


def _found(text: str, begin: int, end: int, number: Any) -> Found:
    extension = _EXTENSION.match(text, end)
    return Found(begin, extension.end() if extension else end, "phone", _international_form(number))


@cache
def _library() -> Any:
    import phonenumbers

    return phonenumbers


def _parsed(written: str, plan: str | None) -> Any:
    """The number of the library; None where its digits are none."""
    library = _library()
    try:
        return library.parse(written, plan)
    except library.NumberParseException:
        return None


def _is_valid(number: Any) -> bool:
    return bool(_library().is_valid_number(number))


def _is_mobile(number: Any) -> bool:
    """Whether only mobile telephones have it: where a zero begins a plan, most digits after it are some number."""
    library = _library()
    return bool(library.number_type(number) == library.PhoneNumberType.MOBILE)


def _is_possible(number: Any) -> bool:
    return bool(_library().is_possible_number(number))


def _international_form(number: Any) -> str:
    library = _library()
    return str(library.format_number(number, library.PhoneNumberFormat.E164))

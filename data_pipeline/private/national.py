"""National identity, tax and social security numbers: a registry of small schemes, one an entry of `SCHEMES`.

A scheme is a form and a check. Where the form is rare and the check strict,
that is enough (`evident`); a number that any
table may hold counts only after a word that announces it, or in a document in a language of its country. A new scheme
is a new entry, with its check beside the others.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_pipeline.private.found import Found
from data_pipeline.private.luhn import luhn
from data_pipeline.private.page import Group, Page
from data_pipeline.private.surroundings import before, joins, names_a_thing, stands_alone

_ANY_ID = (
    r"identi\w+|id(?!=)(?: ?(?:no|nr|number|card|code))?|national\w*|citizen\w*|tax\w*|social|insurance|passport\w*"
    r"|personal\w*|civil|fiscal\w*"
    r"|resident\w*|steuer\w*|ausweis\w*|sozial\w*|versicherung\w*|sécurité sociale|sécu|identité|contribu\w+"
    r"|documento|identidad|seguro"
)
_ANY_UNSPACED = "身份证|证号|身分證|マイナンバー|個人番号|주민|번호|บัตร"


@dataclass(frozen=True)
class Scheme:
    """How a country writes a number of its people.

    check     whether the letters and digits of it, in capitals, are such a number
    labels    words that announce it, as a pattern; general ones are understood everywhere
    shapes    lengths of groups of digits with the signs between them: `3-2-4`
    form      where it holds letters, a pattern instead
    evident   the shapes that need no announcement; `*` for every one
    languages of documents where it needs none
    """

    name: str
    check: Callable[[str], bool]
    labels: re.Pattern[str]
    shapes: tuple[str, ...]
    form: re.Pattern[str] | None
    evident: tuple[str, ...]
    languages: tuple[str, ...]


def _scheme(
    name: str,
    check: Callable[[str], bool],
    labels: str,
    shapes: str = "",
    form: str = "",
    evident: str = "",
    languages: str = "",
) -> Scheme:
    """An entry; lists are parted by commas."""
    return Scheme(
        name,
        check,
        re.compile(rf"(?i)(?:\b(?:{labels}|{_ANY_ID})\b|{_ANY_UNSPACED})[^\n0-9]{{0,28}}\n?[ \t]{{0,4}}$"),
        tuple(shapes.split(",")) if shapes else (),
        re.compile(form) if form else None,
        tuple(evident.split(",")) if evident else (),
        tuple(languages.split()),
    )


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return True


def _is_short_date(digits: str, order: str = "ymd") -> bool:
    """Six digits as year, month and day of either century."""
    parts = {unit: int(digits[2 * n : 2 * n + 2]) for n, unit in enumerate(order)}
    return any(_is_date(century + parts["y"], parts["m"], parts["d"]) for century in (1900, 2000))


def _ssn(v: str) -> bool:
    return v[:3] not in ("000", "666") and v[0] != "9" and v[3:5] != "00" and v[5:] != "0000" and len(set(v)) > 1


def _itin(v: str) -> bool:
    return v[0] == "9" and (50 <= int(v[3:5]) <= 65 or 70 <= int(v[3:5]) <= 88 or 90 <= int(v[3:5]) <= 99)


def _nino(v: str) -> bool:
    return v[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ") and v[0] not in "DFIQUV" and v[1] not in "DFIQUVO"


def _nhs(v: str) -> bool:
    rest = 11 - _weighted(v, (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return rest != 10 and rest % 11 == int(v[9]) and len(set(v)) > 1


def _iso_7064_mod_11_10(v: str) -> bool:
    check = 5
    for digit in v[:-1]:
        check = ((check or 10) * 2) % 11
        check = (check + int(digit)) % 10
    return ((check or 10) * 2 % 11 + int(v[-1])) % 10 == 1


def _steuer_id(v: str) -> bool:
    """Of the first ten digits exactly one stands twice or three times."""
    counts = sorted(v[:10].count(digit) for digit in "0123456789")
    return v[0] != "0" and counts[-1] in (2, 3) and counts[-2] == 1 and _iso_7064_mod_11_10(v)


def _nir(v: str) -> bool:
    """Sex, year, month, place, order, and 97 less the remainder; Corsica's 2A and 2B count as 19 and 18."""
    number = v[:13].replace("2A", "19").replace("2B", "18")
    month = int(v[3:5])
    return (
        v[0] in "123478"
        and (1 <= month <= 12 or 20 <= month <= 42 or month >= 50)
        and (number.isdecimal() and 97 - int(number) % 97 == int(v[13:]))
    )


def _dni(v: str) -> bool:
    number = v[:-1].translate(str.maketrans("XYZ", "012"))
    return v[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10,
    22, 25, 24, 23,
), strict=True))  # fmt: skip


def _codice_fiscale(v: str) -> bool:
    total = sum(_ODD[c] for c in v[:15:2]) + sum(int(c) if c.isdigit() else ord(c) - 65 for c in v[1:15:2])
    return ord(v[15]) - 65 == total % 26


def _cpf(v: str) -> bool:
    first = -_weighted(v, (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11 % 10
    second = -_weighted(v, (11, 10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11 % 10
    return len(set(v)) > 1 and v[9:] == f"{first}{second}"


# Verhoeff's check: the dihedral group of order ten and its permutation.
_TIMES = [
    [(a + b) % 5 + 5 * (a < 5 and b >= 5) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10)] for a in range(10)
]
_STEP = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def verhoeff(digits: str) -> bool:
    """Whether the last digit is the check digit of the others."""
    check, permutation = 0, list(range(10))
    for digit in reversed(digits):
        check = _TIMES[check][permutation[int(digit)]]
        permutation = [_STEP[place] for place in permutation]
    return check == 0


def _aadhaar(v: str) -> bool:
    years = all(group[:2] in ("19", "20") for group in (v[:4], v[4:8], v[8:]))
    return v[0] >= "2" and not years and v != v[::-1] and verhoeff(v)


def _chinese(v: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return (
        v[:2] >= "11"
        and 1880 < int(v[6:10]) < 2100
        and _is_date(int(v[6:10]), int(v[10:12]), int(v[12:14]))
        and v[17] == "10X98765432"[_weighted(v, weights) % 11]
    )


def _korean(v: str) -> bool:
    """Since October 2020 the last six digits are random: no check digit for those born later."""
    century = {"9": 1800, "0": 1800, "1": 1900, "2": 1900, "5": 1900, "6": 1900}.get(v[6], 2000)
    year, month, day = century + int(v[:2]), int(v[2:4]), int(v[4:6])
    if not _is_date(year, month, day):
        return False
    check = (11 - _weighted(v, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10
    foreign = (check + 2) % 10 if v[6] in "5678" else check
    return (year, month) >= (2020, 10) or int(v[12]) in (check, foreign)


def _japanese(v: str) -> bool:
    rest = _weighted(v, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return int(v[11]) == (0 if rest <= 1 else 11 - rest) and len(set(v)) > 2


def _pesel(v: str) -> bool:
    century, month = divmod(int(v[2:4]), 20)
    year = (1900, 2000, 2100, 2200, 1800)[century] + int(v[:2])
    return _is_date(year, month, int(v[4:6])) and _weighted(v, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def _swedish(v: str) -> bool:
    v = v[-10:]
    day = int(v[4:6])
    return _is_short_date(v[:4] + f"{day - 60 if day > 60 else day:02}") and luhn(v)


def _finnish(v: str) -> bool:
    return _is_short_date(v[:6], "dmy") and v[-1] == "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(v[:6] + v[-4:-1]) % 31]


def _norwegian(v: str) -> bool:
    day = int(v[:2])
    date = f"{day - 40 if day > 40 else day:02}{v[2:6]}"
    return (
        _is_short_date(date, "dmy")
        and _weighted(v, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
        and _weighted(v, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0
    )


def _danish(v: str) -> bool:
    return _is_short_date(v[:6], "dmy")


def _czech(v: str) -> bool:
    month = int(v[2:4]) % 50
    date = f"{v[:2]}{month - 20 if month > 20 else month:02}{v[4:6]}"
    rest = int(v[:9]) % 11 % 10
    return _is_short_date(date) and (int(v) % 11 == 0 or rest == int(v[9]))


def _romanian(v: str) -> bool:
    rest = _weighted(v, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return v[0] in "12345678" and _is_short_date(v[1:7]) and int(v[12]) == (1 if rest == 10 else rest)


def _belgian(v: str) -> bool:
    check = int(v[9:])
    return int(v[2:4]) <= 12 and int(v[4:6]) <= 31 and check in (97 - int(v[:9]) % 97, 97 - int("2" + v[:9]) % 97)


def _dutch(v: str) -> bool:
    return _weighted(v, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and len(set(v)) > 1


def _portuguese(v: str) -> bool:
    rest = _weighted(v, (9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return v[0] != "0" and int(v[8]) == (0 if rest < 2 else 11 - rest)


def _turkish(v: str) -> bool:
    odd, even = sum(map(int, v[:9:2])), sum(map(int, v[1:8:2]))
    return v[0] != "0" and (7 * odd - even) % 10 == int(v[9]) and sum(map(int, v[:10])) % 10 == int(v[10])


def _swiss(v: str) -> bool:
    return v[:3] == "756" and -_weighted(v, (1, 3) * 6) % 10 == int(v[12])


def _austrian(v: str) -> bool:
    return v[0] != "0" and _weighted(v[:3] + v[4:], (3, 7, 9, 5, 8, 4, 2, 1, 6)) % 11 == int(v[3]) and int(v[4:6]) <= 31


def _irish(v: str) -> bool:
    second = ord(v[8]) - 64 if len(v) > 8 and v[8] != "W" else 0
    return v[7] == "WABCDEFGHIJKLMNOPQRSTUV"[(_weighted(v[:7], (8, 7, 6, 5, 4, 3, 2)) + 9 * second) % 23]


def _sin(v: str) -> bool:
    return v[0] not in "08" and luhn(v) and len(set(v)) > 1


def _tfn(v: str) -> bool:
    return _weighted(v, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0 and len(set(v)) > 1


def _south_african(v: str) -> bool:
    return _is_short_date(v[:6]) and v[10] in "012" and luhn(v)


def _israeli(v: str) -> bool:
    return luhn(v) and len(set(v)) > 2


def _singaporean(v: str) -> bool:
    total = _weighted(v[1:8], (2, 7, 6, 5, 4, 3, 2)) + {"T": 4, "G": 4, "M": 3}.get(v[0], 0)
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "XWUTRQPNJLK"}.get(v[0], "XWUTRQPNMLK")
    return v[8] == letters[total % 11]


def _taiwanese(v: str) -> bool:
    letter = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(v[0]) + 10
    return (letter // 10 + letter % 10 * 9 + _weighted(v[1:], (8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


def _hong_kong(v: str) -> bool:
    letters = f"{v[:-7]: >2}"
    values = [36 if c == " " else int(c, 36) for c in letters] + [int(c) for c in v[-7:-1]]
    return (
        sum(value * weight for value, weight in zip(values, range(9, 1, -1), strict=True)) + int(v[-1], 36)
    ) % 11 == 0


def _pan(v: str) -> bool:
    return v[3] in "ABCFGHJLPT"


def _curp(v: str) -> bool:
    letters = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    return _is_short_date(v[4:10]) and -sum(letters.index(c) * (18 - n) for n, c in enumerate(v[:17])) % 10 == int(
        v[17]
    )


def _chilean(v: str) -> bool:
    rest = sum(int(digit) * (2 + n % 6) for n, digit in enumerate(reversed(v[:-1]))) % 11
    return v[-1] == "0K987654321"[rest]


def _thai(v: str) -> bool:
    return (11 - _weighted(v, tuple(range(13, 1, -1))) % 11) % 10 == int(v[12])


def _snils(v: str) -> bool:
    return _weighted(v, (9, 8, 7, 6, 5, 4, 3, 2, 1)) % 101 % 100 == int(v[9:])


def _inn(v: str) -> bool:
    tenth = _weighted(v, (7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10
    last = _weighted(v, (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10
    return v[10:] == f"{tenth}{last}"


def _baltic(v: str) -> bool:
    rest = _weighted(v, (1, 2, 3, 4, 5, 6, 7, 8, 9, 1)) % 11
    if rest == 10:
        rest = _weighted(v, (3, 4, 5, 6, 7, 8, 9, 1, 2, 3)) % 11 % 10
    return v[0] in "12345678" and _is_short_date(v[1:7]) and rest == int(v[10])


def _bulgarian(v: str) -> bool:
    month = int(v[2:4])
    date = v[:2] + f"{month - (40 if month > 40 else 20 if month > 20 else 0):02}" + v[4:6]
    return _is_short_date(date) and _weighted(v, (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10 == int(v[9])


def _greek(v: str) -> bool:
    return _is_short_date(v[:6], "dmy") and luhn(v)


def _emso(v: str) -> bool:
    rest = 11 - _weighted(v, (7, 6, 5, 4, 3, 2) * 2) % 11
    return int(v[2:4]) in range(1, 13) and 1 <= int(v[:2]) <= 31 and (0 if rest == 11 else rest) == int(v[12])


def _indonesian(v: str) -> bool:
    day = int(v[6:8])
    return (
        "11" <= v[:2] <= "96"
        and _is_short_date(f"{day - 40 if day > 40 else day:02}{v[8:12]}", "dmy")
        and v[12:] != "0000"
    )


def _malaysian(v: str) -> bool:
    return (
        _is_short_date(v[:6])
        and "01" <= v[6:8] <= "92"
        and v[6:8] not in ("00", "17", "18", "19", "20", "69", "70", "73", "80", "81")
    )


SCHEMES = (
    _scheme("us_ssn", _ssn, r"s\.?s\.?n?\.?|soc(?:ial)?\.? sec\w*", "3-2-4,3 2 4,9", evident="3-2-4"),
    _scheme("us_itin", _itin, r"itin", "3-2-4,3 2 4,9", evident="3-2-4"),
    _scheme("gb_nhs", _nhs, r"nhs(?: n\w+)?", "3 3 4,3-3-4,10"),
    _scheme("de_steuer_id", _steuer_id, r"steuer\w*|idnr|tin|tax id\w*", "2 3 3 3,11", evident="*", languages="de"),
    _scheme("fr_nir", _nir, r"nir|insee|sécu\w*|sociale",
            "1 2 2 2 3 3 2,1.2.2.2.3.3.2,1-2-2-2-3-3-2,15,13 2,13-2", evident="*", languages="fr"),
    _scheme("br_cpf", _cpf, r"cpf|c\.p\.f\.", "3.3.3-2,3.3.3/2,3 3 3 2,3 3 3-2,3-3-3-2,9-2,9 2,11",
            evident="*", languages="pt"),
    _scheme("in_aadhaar", _aadhaar, r"aadh?aar\w*|uid(?:ai)?|आधार", "4 4 4,4-4-4,12",
            evident="4-4-4", languages="hi bn ta te mr gu kn ml pa"),
    _scheme("cn_resident", _chinese, r"sfz", "18,6 8 4", evident="*", languages="zh"),
    _scheme("kr_rrn", _korean, r"rrn|resident reg\w*", "6-7,6 - 7,13", evident="6-7,6 - 7", languages="ko"),
    _scheme("jp_my_number", _japanese, r"my ?number", "4 4 4,4-4-4,12", languages="ja"),
    _scheme("pl_pesel", _pesel, r"pesel", "11", languages="pl"),
    _scheme("se_personnummer", _swedish, r"personn\w+|pers\.?nr|samordning\w*", "6-4,8-4,10,12",
            evident="6-4,8-4", languages="sv"),
    _scheme("no_fodselsnummer", _norwegian, r"fødsels\w+|f\.?nr|personn\w+", "6 5,11", languages="no nb nn"),
    _scheme("dk_cpr", _danish, r"cpr\w*|personn\w+", "6-4,10", languages="da"),
    _scheme("cz_rodne_cislo", _czech, r"rodn[éeá]\w* čísl\w+|r\.?č\.?", "6/4,10", evident="6/4"),
    _scheme("ro_cnp", _romanian, r"cnp|cod numeric\w*", "13", evident="*", languages="ro"),
    _scheme("be_rijksregister", _belgian, r"rijksregister\w*|registre national|niss|insz",
            "2.2.2-3.2,2.2.2 3.2,6-3-2,6 3 2,11", evident="2.2.2-3.2,2.2.2 3.2", languages="nl fr"),
    _scheme("nl_bsn", _dutch, r"bsn|burgerservice\w*|sofi\w*", "9,3 3 3,3.3.3,4.2.3"),
    _scheme("pt_nif", _portuguese, r"nif|contribuinte", "9,3 3 3"),
    _scheme("tr_kimlik", _turkish, r"t\.?c\.?(?: ?kimlik)?(?: no)?|kimlik\w*", "11", languages="tr"),
    _scheme("ch_ahv", _swiss, r"ahv\w*|avs|oasi", "3.4.4.2,3 4 4 2,13", evident="3.4.4.2", languages="de fr it"),
    _scheme("at_svnr", _austrian, r"sv-?n\w+|sozialversicherung\w*|svnr", "4 6,10"),
    _scheme("ca_sin", _sin, r"sin|nas|social ins\w*", "3 3 3,3-3-3,9", evident="3-3-3"),
    _scheme("au_tfn", _tfn, r"tfn|tax file\w*", "3 3 3,9"),
    _scheme("za_id", _south_african, r"sa id\w*", "13,6 4 3,6 4 2 1", evident="*"),
    _scheme("il_id", _israeli, r"t\.?z\.?|teudat\w*|ת\.?ז\.?|זהות", "9,8-1", languages="he"),
    _scheme("cl_rut", _chilean, r"rut|run|r\.u\.t\.", "2.3.3-1,1.3.3-1,8-1,7-1", evident="2.3.3-1,1.3.3-1"),
    _scheme("th_id", _thai, r"thai id", "1-4-5-2-1,1 4 5 2 1,13", evident="1-4-5-2-1,1 4 5 2 1", languages="th"),
    _scheme("ru_snils", _snils, r"snils|снилс", "3-3-3 2,3-3-3-2,11", evident="3-3-3 2,3-3-3-2", languages="ru"),
    _scheme("ru_inn", _inn, r"inn|инн", "12", languages="ru"),
    _scheme("baltic_code", _baltic, r"isikukood|asmens kodas|ik", "11,6-5", languages="et lt"),
    _scheme("bg_egn", _bulgarian, r"егн|egn", "10", languages="bg"),
    _scheme("gr_amka", _greek, r"amka|αμκα", "11", languages="el"),
    _scheme("yu_jmbg", _emso, r"jmbg|emšo|emso|јмбг", "13", languages="sr hr bs sl mk"),
    _scheme("hr_oib", _iso_7064_mod_11_10, r"oib", "11", languages="hr"),
    _scheme("id_nik", _indonesian, r"nik|ktp", "16", languages="id"),
    _scheme("my_nric", _malaysian, r"mykad|ic|nric|kad pengenalan", "6-2-4", evident="*", languages="ms"),
    _scheme("gb_nino", _nino, r"n\.?i\.?(?:no)?|nino|national ins\w*", form=r"[A-Z]{2}\d{6}[A-D]"),
    _scheme(
        "gb_nino_grouped", _nino, r"n\.?i\.?(?:no)?|nino|national ins\w*", evident="*",
        form=r"[A-Z]{2}([ -])\d\d(?:\1\d\d){2}\1[A-D]",
    ),
    _scheme("fr_nir_corsica", _nir, r"nir|insee|sécu\w*|sociale",
            form=r"[1-478] ?\d\d ?\d\d ?2[AB] ?\d{3} ?\d{3} ?\d\d", evident="*"),
    _scheme("es_dni", _dni, r"dni|nif|d\.n\.i\.", form=r"\d\d[. ]?\d{3}[. ]?\d{3}[ -]?[A-Z]", evident="*"),
    _scheme("es_nie", _dni, r"nie|n\.i\.e\.", form=r"[XYZ][ -]?\d{7}[ -]?[A-Z]", evident="*"),
    _scheme(
        "it_codice_fiscale", _codice_fiscale, r"codice fiscale|c\.?f\.?", evident="*",
        form=r"[A-Z]{3} ?[A-Z]{3} ?[0-9]{2}[A-EHLMPRST][0-9]{2} ?[A-Z][0-9]{3}[A-Z]",
    ),
    _scheme("in_pan", _pan, r"pan(?: card| n\w+)?|permanent account\w*", form=r"[A-Z]{5}\d{4}[A-Z]", languages="hi"),
    _scheme("cn_resident_x", _chinese, r"sfz", form=r"\d{17}[Xx]", evident="*"),
    _scheme("fi_hetu", _finnish, r"hetu|henkilötunnus|henkilö\w+", form=r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]", evident="*"),
    _scheme("ie_pps", _irish, r"pps\w*", form=r"\d{7}[A-W][A-IW]?", evident="*"),
    _scheme("sg_nric", _singaporean, r"nric|fin", form=r"[STFGM]\d{7}[A-Z]", evident="*"),
    _scheme("tw_id", _taiwanese, r"id|身分證\w*", form=r"[A-Z][1289]\d{8}", evident="*"),
    _scheme("hk_id", _hong_kong, r"hkid", form=r"[A-Z]{1,2}\d{6}\([0-9A]\)", evident="*"),
    _scheme("mx_curp", _curp, r"curp", form=r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d", evident="*"),
    _scheme("cl_rut_k", _chilean, r"rut|run|r\.u\.t\.", form=r"\d{1,2}\.\d{3}\.\d{3}-[Kk]|\d{7,8}-[Kk]", evident="*"),
)  # fmt: skip
_OF_SHAPE: dict[str, list[Scheme]] = {}
for _one in SCHEMES:
    for _shape in _one.shapes:
        _OF_SHAPE.setdefault(_shape, []).append(_one)
# What shapes begin with, group by group: where none goes on so, nothing has to be looked at.
_PREFIXES = frozenset(shape[:end] for shape in _OF_SHAPE for end in range(1, len(shape) + 1))
_BOOKS = ("978", "979")
_MOST_GROUPS = 1 + max(sum(not sign.isdigit() for sign in shape.replace(" - ", "-")) for shape in _OF_SHAPE)
_LETTERED = tuple((scheme, scheme.form) for scheme in SCHEMES if scheme.form)

# Those with fewer than six digits in a row.
_FEW_DIGITS = re.compile(r"[A-Z]{3} ?[A-Z]{2}(?:[A-Z] ?)?[0-9]{2}")
SHAPES = ("AAAAAA99A", "AAA AAA 99A", "AAAAA9999A")
_REACH = 5  # characters before a run of digits at which a number with letters before its digits begins


def find(page: Page) -> Iterator[Found]:
    """National numbers; the language is asked for only where one needs it."""
    text = page.text
    for groups in page.runs:
        yield from _in_run(page, groups)
    for match in _FEW_DIGITS.finditer(text) if not page.held.isdisjoint(SHAPES) else ():
        if found := _lettered(page, match.start()):
            yield found


def _in_run(page: Page, groups: list[Group]) -> Iterator[Found]:
    text, at = page.text, groups[0].start
    if _touches_letter(text, at, groups[-1].end):
        for start in range(max(0, at - _REACH), groups[-1].start + 1):
            if start >= at and not text[start].isdecimal():
                continue
            if found := _lettered(page, start):
                yield found
                at = found.end
                break
    for n, group in enumerate(groups):
        front = text[groups[n - 1].end : group.start] if n else ""
        if group.start >= at and (found := _shaped(page, groups[n : n + _MOST_GROUPS + 1], front)):
            yield found
            at = found.end


def _touches_letter(text: str, start: int, end: int) -> bool:
    """Whether a capital letter stands right before or after a run of digits."""
    near = (
        text[max(0, start - 2) : start].rstrip(" -")[-1:]
        + text[end : end + 2].lstrip(" -(")[:1]
        + text[start - 1 : start]
    )
    return any("A" <= letter <= "Z" or letter == "x" for letter in near) or text[end : end + 2] in ("-k", "-K")


def _shaped(page: Page, groups: list[Group], front: str) -> Found | None:
    """The number that these groups begin with, by its shape; `front` stands between it and a group before."""
    text, start, shape, value, last = page.text, groups[0].start, "", "", groups[0].start
    if start and (text[start - 1] == "+" or joins(text[start - 1])):
        return None
    for n, group in enumerate(groups):
        shape += (text[last : group.start] if shape else "") + str(group.end - group.start)
        if shape not in _PREFIXES:
            return None
        value += group.digits
        last = group.end
        for scheme in _OF_SHAPE.get(shape, ()):
            rear = text[last : groups[n + 1].start] if n + 1 < len(groups) else ""
            if (front and front in shape) or (rear and rear in shape) or (value[:3] in _BOOKS and shape == "13"):
                continue  # a piece of a longer number, or a book
            if scheme.check(value) and _is_meant(page, scheme, start, last, shape):
                return Found(start, last, "national_id", value)
    return None


def _lettered(page: Page, start: int) -> Found | None:
    text = page.text
    if start and (text[start - 1] == "+" or joins(text[start - 1])):
        return None
    for scheme, form in _LETTERED:
        if match := form.match(text, start):
            value = "".join(filter(str.isalnum, match[0])).upper()
            if scheme.check(value) and _is_meant(page, scheme, start, match.end(), ""):
                return Found(start, match.end(), "national_id", value)
    return None


def _is_meant(page: Page, scheme: Scheme, start: int, end: int, shape: str) -> bool:
    """Whether what stands around a number allows it to be one of the scheme's."""
    if not stands_alone(page.text, start, end):
        return False
    if scheme.labels.search(before(page.text, start)):
        return True
    if names_a_thing(page.text, start):
        return False
    return "*" in scheme.evident or shape in scheme.evident or page.language() in scheme.languages

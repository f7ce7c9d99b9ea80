"""Texts with invented personal data and secrets of every kind, from a seed.

Values are made from the published rules (check digits, prefixes, lengths), written the ways people write them, and put
into sentences of twelve languages.
"""

from __future__ import annotations

import base64
import hashlib
import random
import string
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import phonenumbers

from data_pipeline.private.scrub import Scrubbed

RUN = 6  # characters of a value


class Planted(NamedTuple):
    """`value` stands in `text` as it is written."""

    kind: str
    text: str
    value: str

    def is_found(self, scrubbed: Scrubbed) -> bool:
        """Whether an item of the kind was replaced, and no six characters in a row are left of the value."""
        run = min(RUN, len(self.value))
        parts = (self.value[start : start + run] for start in range(len(self.value) - run + 1))
        return scrubbed.counts.get(self.kind, 0) >= 1 and not any(part in scrubbed.text for part in parts)


FILLER = {
    "en": "We met last week to talk about the plans for the coming year, and everybody agreed that the old house "
    "should stay as it is.",
    "de": "Wir haben uns letzte Woche getroffen, um über die Pläne für das kommende Jahr zu sprechen, und alle "
    "waren sich einig.",
    "fr": "Nous nous sommes rencontrés la semaine dernière pour parler des projets de l'année prochaine, et tout "
    "le monde était d'accord.",
    "es": "Nos reunimos la semana pasada para hablar de los planes del próximo año, y todos estuvieron de "
    "acuerdo en seguir adelante.",
    "it": "Ci siamo incontrati la settimana scorsa per parlare dei progetti del prossimo anno, e tutti erano "
    "d'accordo di continuare.",
    "pt": "Nós nos encontramos na semana passada para falar sobre os planos do próximo ano, e todos concordaram "
    "que não havia pressa.",
    "nl": "Wij hebben elkaar vorige week ontmoet om over de plannen voor het komende jaar te praten, en iedereen "
    "was het ermee eens.",
    "pl": "Spotkaliśmy się w zeszłym tygodniu, żeby porozmawiać o planach na przyszły rok, i wszyscy się "
    "zgodzili, że warto poczekać.",
    "ru": "Мы встретились на прошлой неделе, чтобы поговорить о планах на следующий год, и все согласились, что "
    "спешить не нужно.",
    "zh": "我们上周见面讨论了明年的计划，大家都同意不需要着急，先把眼前的事情做好再说。",
    "ja": "先週、来年の計画について話し合うために集まり、急ぐ必要はないということで全員が同意しました。",
    "ko": "우리는 지난주에 내년 계획에 대해 이야기하기 위해 만났고, 모두가 서두를 필요가 없다는 데 동의했습니다.",
}
# Where a number stands that needs no other word, in each language.
BARE = {
    "en": (
        "Please note {} for later.",
        "{}",
        "She wrote down {} and left.",
        "Details: {}",
        "({})",
        "* {}\n* second line",
        "Name, {}, city",
    ),
    "de": ("Bitte notieren Sie {} für später.", "{}", "Angaben: {}", "({})"),
    "fr": ("Veuillez noter {} pour plus tard.", "{}", "Détails : {}", "({})"),
    "es": ("Anote {} para más tarde.", "{}", "Datos: {}", "({})"),
    "it": ("Prendete nota di {} per dopo.", "{}", "Dati: {}", "({})"),
    "pt": ("Anote {} para depois.", "{}", "Dados: {}", "({})"),
    "nl": ("Noteer {} voor later.", "{}", "Gegevens: {}", "({})"),
    "pl": ("Proszę zanotować {} na później.", "{}", "Dane: {}", "({})"),
    "ru": ("Запишите {} на потом.", "{}", "Данные: {}", "({})"),
    "zh": ("请记下{}以备后用。", "{}", "资料：{}", "（{}）"),
    "ja": ("{}を控えておいてください。", "{}", "詳細：{}", "（{}）"),
    "ko": ("나중을 위해 {}을 적어 두세요.", "{}", "정보: {}", "({})"),
}
CALLS = {
    "en": (
        "Call me at {} tomorrow.",
        "Phone: {}",
        "Tel. {}",
        "My number is {}.",
        "Fax {}",
        "Mobile: {}",
        "You can reach us on {} until noon.",
        "☎ {}",
    ),
    "de": (
        "Rufen Sie mich unter {} an.",
        "Tel.: {}",
        "Telefon {}",
        "Handy: {}",
        "Fax: {}",
        "Sie erreichen uns unter {}.",
    ),
    "fr": ("Appelez-moi au {} demain.", "Tél. : {}", "Téléphone : {}", "Portable : {}", "Contact : {}"),
    "es": ("Llámame al {} mañana.", "Tel.: {}", "Teléfono: {}", "Móvil: {}", "Contacto: {}"),
    "it": ("Chiamami al {} domani.", "Tel. {}", "Telefono: {}", "Cellulare: {}"),
    "pt": ("Ligue para {} amanhã.", "Tel.: {}", "Telefone: {}", "Celular: {}"),
    "nl": ("Bel mij op {} morgen.", "Tel.: {}", "Telefoon: {}", "Mobiel: {}"),
    "pl": ("Zadzwoń do mnie jutro: {}.", "Tel.: {}", "Telefon: {}", "Kom.: tel. {}"),
    "ru": ("Позвоните мне завтра: {}.", "Тел.: {}", "Телефон: {}", "Моб. {}"),
    "zh": ("请致电{}联系我。", "电话：{}", "手机：{}"),
    "ja": ("明日{}までお電話ください。電話：{}", "電話：{}", "携帯：{}"),
    "ko": ("내일 전화 {}로 연락 주세요.", "전화: {}", "휴대폰: {}"),
}
PLANS = {
    "en": ("US", "GB", "CA", "AU", "IE", "IN", "NZ"),
    "de": ("DE", "AT", "CH"),
    "fr": ("FR", "BE"),
    "es": ("ES", "MX", "AR"),
    "it": ("IT",),
    "pt": ("BR", "PT"),
    "nl": ("NL",),
    "pl": ("PL",),
    "ru": ("RU",),
    "zh": ("CN",),
    "ja": ("JP",),
    "ko": ("KR",),
}
NAMES = (
    "anna",
    "j.smith",
    "Maria_Lopez",
    "k-tanaka",
    "peter.o'brien",
    "info",
    "x",
    "müller",
    "liwei88",
    "first.last+news",
    "sales",
    "a.b.c",
    "ROBERT",
)
HOSTS = (
    "mail.example",
    "example.com",
    "uni-berlin.de",
    "post.co.uk",
    "sub.domain.org",
    "bücher.example",
    "xn--bcher-kva.example",
    "firma.info",
    "school.edu",
    "correo.com.mx",
    "mail.museum",
    "yandex.ru",
    "qq.com",
    "docomo.ne.jp",
    "gov.in",
    "startup.io",
    "lab.ai",
    "a-b.net",
)


def document(language: str, sentence: str, rng: random.Random) -> str:
    """A sentence between others of its language."""
    filler = FILLER[language]
    joint = rng.choice(("\n\n", "\n", " "))
    return joint.join(rng.choice(((filler, sentence, filler), (filler, sentence), (sentence, filler))))


def digits(rng: random.Random, count: int, first: str = string.digits) -> str:
    return rng.choice(first) + "".join(rng.choices(string.digits, k=count - 1))


def grouped(value: str, lengths: tuple[int, ...], sign: str) -> str:
    """The value in groups of these lengths, the rest in the last."""
    parts, at = [], 0
    for length in lengths:
        parts.append(value[at : at + length])
        at += length
    return sign.join(part for part in (*parts, value[at:]) if part)


# --- addresses -------------------------------------------------------------------------------------------------------


def emails(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        name, host = rng.choice(NAMES) + rng.choice(("", "", "7", "1984")), rng.choice(HOSTS)
        plain = f"{name}@{host}"
        forms = [plain] * 8 + [
            f"mailto:{plain}",
            f"<{plain}>",
            f"{plain},",
            f"[{plain}]",
            f'"{plain}"',
            f"{plain}.",
            plain.upper(),
        ]
        if host.isascii() and name.isascii() and "'" not in name:
            dotted = host.replace(".", " [dot] ")
            forms += [
                f"{name} [at] {dotted}",
                f"{name}(at){host}",
                f"{name} (at) {host.replace('.', ' (dot) ')}",
                f"{name} AT {host.replace('.', ' DOT ')}",
                f"{name}[at]{host}",
                f"{name}{{at}}{host}",
                f"{name}＠{host}",
                f"{name}&#64;{host}",
            ]
        written = rng.choice(forms)
        yield written, written.removeprefix("mailto:").strip('<>,[]".')


def ipv4s(rng: random.Random) -> Iterator[tuple[str, str]]:
    import ipaddress

    while True:
        address = ipaddress.IPv4Address(rng.getrandbits(32))
        if address.is_global and not address.is_multicast:
            written = str(address)
            form = rng.choice(
                ("{}", "{}", "{}", "{}:8080", "http://{}/x", "[{}]", "{}/32", "user@{}", "{}.", "{},", "({})")
            )
            yield form.format(written), written


def ipv6s(rng: random.Random) -> Iterator[tuple[str, str]]:
    import ipaddress

    while True:
        address = ipaddress.IPv6Address(
            (rng.choice((0x2001_0470, 0x2606_4700, 0x2A02_0810, 0x2400_CB00, 0x2804_0014)) << 96)
            | rng.getrandbits(rng.choice((96, 16, 64)))
        )
        written = rng.choice((address.compressed, address.exploded, address.compressed.upper()))
        yield rng.choice(("{}", "{}", "[{}]:443", "{}.", "{},", "http://[{}]/", "{}/128")).format(written), written


# --- numbers ---------------------------------------------------------------------------------------------------------


def luhn_digit(body: str) -> str:
    total = sum(int(d) if n % 2 else sum(divmod(2 * int(d), 10)) for n, d in enumerate(reversed(body)))
    return str(-total % 10)


def cards(rng: random.Random) -> Iterator[tuple[str, str]]:
    kinds = (
        ("4", 16),
        ("4", 16),
        ("5", 16),
        ("22", 16),
        ("34", 15),
        ("37", 15),
        ("6011", 16),
        ("65", 16),
        ("36", 14),
        ("3530", 16),
        ("62", 16),
    )
    while True:
        prefix, length = rng.choice(kinds)
        prefix += rng.choice("12345") if prefix == "5" else rng.choice("3456") if prefix == "22" else ""
        body = prefix + "".join(rng.choices(string.digits, k=length - 1 - len(prefix)))
        value = body + luhn_digit(body)
        lengths = {16: (4, 4, 4), 15: (4, 6), 14: (4, 6)}[length]
        sign = rng.choice(("", " ", "-", " ", "\u00a0", "–", ".", "  "))
        written = grouped(value, lengths, sign)
        if rng.random() < 0.05:
            written = grouped(value, lengths, "\n") if length == 15 else written.replace(" ", "\n", 1)
        yield (
            rng.choice(
                ("{}", "{}", "card {}", "Visa: {}", "{}, exp. 12/27", "{} CVV 123", "no. {}", "ending {}.")
            ).format(written),
            written,
        )


def ibans(rng: random.Random) -> Iterator[tuple[str, str]]:
    banks = {
        "DE": "18",
        "GB": "A4 14",
        "FR": "10 X11 2",
        "NL": "A4 10",
        "ES": "20",
        "IT": "A1 10 X12",
        "CH": "5 X12",
        "PL": "24",
        "SE": "20",
        "BE": "12",
        "AT": "16",
        "NO": "11",
        "PT": "21",
        "IE": "A4 14",
        "TR": "22",
        "SA": "2 X18",
        "BR": "23 A1 X1",
        "MT": "A4 5 X18",
        "GR": "7 X16",
        "CZ": "20",
    }
    while True:
        country, form = rng.choice(list(banks.items()))
        body = ""
        for part in form.split():
            letters = {"A": string.ascii_uppercase, "X": string.ascii_uppercase + string.digits}.get(
                part[0], string.digits
            )
            body += "".join(rng.choices(letters, k=int(part.lstrip("AX"))))
        check = 98 - int("".join(str(int(c, 36)) for c in f"{body}{country}00")) % 97
        value = f"{country}{check:02}{body}"
        sign = rng.choice(("", " ", " ", "\u00a0", "-"))
        written = grouped(value, (4,) * 8, sign) if sign else value
        if rng.random() < 0.05 and sign == " ":
            written = written[:14] + "\n" + written[15:] if written[14] == " " else written
        yield (
            rng.choice(("{}", "IBAN {}", "IBAN: {}", "{} BIC COBADEFF", "account {},", "({})", "{}.")).format(written),
            written,
        )


def phones(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Documents and values: the sentence depends on how the number is written."""
    while True:
        language = rng.choice(list(PLANS))
        number = phone_number(rng, rng.choice(PLANS[language]))
        style = rng.choice(("international", "international", "national", "e164", "announced"))
        if style == "e164":
            written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
        elif style == "international":
            written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
            written = rng.choice(
                (
                    written,
                    written.replace(" ", "-"),
                    written.replace(" ", "\u00a0"),
                    written.replace(" ", "."),
                    written.replace("-", "‑"),
                    written.replace("+", "00") if rng.random() < 0.3 else written,
                    written.replace(" ", " (0)", 1) if number.country_code in (44, 49, 41, 43) else written,
                )
            )
        else:
            written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
            if style == "announced":
                written = rng.choice(
                    (
                        written,
                        written.replace(" ", ""),
                        written.replace(" ", "-"),
                        written.replace(" ", "."),
                        written.replace(" ", "/", 1),
                    )
                )
        announced = style in ("announced", "national") or rng.random() < 0.5
        sentence = rng.choice((CALLS if announced else BARE)[language])
        yield document(language, sentence.replace("{}", written, 1).replace("{}", ""), rng), written


def phone_number(rng: random.Random, plan: str) -> phonenumbers.PhoneNumber:
    kind = rng.choice((phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE))
    example = phonenumbers.example_number_for_type(plan, kind)
    national = str(example.national_number)
    while True:
        changed = national[:3] + "".join(rng.choices(string.digits, k=len(national) - 3))
        number = phonenumbers.PhoneNumber(
            country_code=example.country_code,
            national_number=int(changed),
            italian_leading_zero=example.italian_leading_zero,
        )
        if phonenumbers.is_valid_number(number):
            return number


# --- national numbers ------------------------------------------------------------------------------------------------


def _ymd(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(1940, 2005), rng.randint(1, 12), rng.randint(1, 28)


def _ssn(rng: random.Random) -> str:
    return f"{rng.choice([n for n in range(1, 900) if n != 666]):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"


def _nino(rng: random.Random) -> str:
    pair = rng.choice("ABCEGHJKLMNOPRSTWXYZ") + rng.choice("ABCEGHJKLMNPRSTWXYZ")
    pair = "AB" if pair in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ") or pair[0] == "O" else pair
    return rng.choice(("{0}{1}{2}{3}{4}", "{0} {1} {2} {3} {4}")).format(
        pair, *(digits(rng, 2) for _ in range(3)), rng.choice("ABCD")
    )


def _steuer(rng: random.Random) -> str:
    while True:
        ten = rng.sample(string.digits, 9)
        ten.insert(rng.randint(0, 9), rng.choice(ten))
        if ten[0] == "0":
            continue
        product = 10
        for digit in ten:
            total = (int(digit) + product) % 10 or 10
            product = total * 2 % 11
        value = "".join(ten) + str((11 - product) % 10)
        return rng.choice((value, grouped(value, (2, 3, 3), " ")))


def _nir(rng: random.Random) -> str:
    birth = f"{rng.choice('12')}{rng.randint(0, 99):02}{rng.randint(1, 12):02}"
    body = f"{birth}{rng.randint(1, 95):02}{rng.randint(1, 990):03}{rng.randint(1, 999):03}"
    value = body + f"{97 - int(body) % 97:02}"
    return rng.choice((value, grouped(value, (1, 2, 2, 2, 3, 3), " ")))


def _dni(rng: random.Random) -> str:
    number = rng.randint(1_000_000, 99_999_999)
    letter = "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]
    if rng.random() < 0.3:
        first = rng.choice("XYZ")
        number %= 10_000_000
        return f"{first}{number:07}{'TRWAGMYFPDXBNJZSQVHLCKE'[int(str('XYZ'.index(first)) + f'{number:07}') % 23]}"
    return rng.choice((f"{number:08}{letter}", f"{number:08}-{letter}"))


def _codice(rng: random.Random) -> str:
    odd = dict(
        zip(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
            strict=True,
        )
    )
    odd |= {str(n): odd[chr(65 + n)] for n in range(10)}
    even = {c: n for n, c in enumerate(string.ascii_uppercase)} | {str(n): n for n in range(10)}
    body = (
        "".join(rng.choices("BCDFGLMNPRSTVAEIO", k=6))
        + f"{rng.randint(0, 99):02}{rng.choice('ABCDEHLMPRST')}{rng.choice((0, 40)) + rng.randint(1, 28):02}"
    )
    body += f"{rng.choice('ABCDEFGHIL')}{rng.randint(1, 999):03}"
    return body + chr(65 + sum((even if n % 2 else odd)[c] for n, c in enumerate(body)) % 26)


def _cpf(rng: random.Random) -> str:
    body = digits(rng, 9)
    for _ in range(2):
        total = sum(int(d) * w for d, w in zip(body, range(len(body) + 1, 1, -1), strict=True))
        body += str(0 if total % 11 < 2 else 11 - total % 11)
    return rng.choice((body, f"{body[:3]}.{body[3:6]}.{body[6:9]}-{body[9:]}"))


_D5 = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
    [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
    [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
    [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
    [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
    [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]
_P = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
    [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
    [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
    [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
    [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
    [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
    [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
]


def _aadhaar(rng: random.Random) -> str:
    body = digits(rng, 11, "23456789")
    check = 0
    for n, digit in enumerate(reversed(body), 1):
        check = _D5[check][_P[n % 8][int(digit)]]
    value = body + str((0, 4, 3, 2, 1, 5, 6, 7, 8, 9)[check])
    return rng.choice((value, grouped(value, (4, 4), " "), grouped(value, (4, 4), "-")))


def _chinese(rng: random.Random) -> str:
    year, month, day = _ymd(rng)
    place = rng.choice(("110101", "310104", "440305", "510107", "330782"))
    body = f"{place}{year}{month:02}{day:02}{rng.randint(1, 999):03}"
    total = sum(int(d) * (2 ** (17 - n) % 11) for n, d in enumerate(body))
    return body + "10X98765432"[total % 11]


def _korean(rng: random.Random) -> str:
    year, month, day = _ymd(rng)
    body = f"{year % 100:02}{month:02}{day:02}{rng.choice('12') if year < 2000 else rng.choice('34')}{digits(rng, 5)}"
    total = sum(int(d) * w for d, w in zip(body, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True))
    return f"{body[:6]}-{body[6:]}{(11 - total % 11) % 10}"


NATIONAL: dict[str, tuple[Callable[[random.Random], str], str, tuple[str, ...], bool]] = {
    # maker, language of the document, sentences with a label, whether one without a label must be found too
    "us_ssn": (_ssn, "en", ("SSN: {}", "Social Security number {}", "her social security number is {}."), True),
    "gb_nino": (_nino, "en", ("National Insurance number: {}", "NI no. {}", "NINO {}"), False),
    "de_steuer_id": (_steuer, "de", ("Steuer-ID: {}", "Steueridentifikationsnummer {}", "IdNr. {}"), True),
    "fr_nir": (_nir, "fr", ("Numéro de sécurité sociale : {}", "NIR {}", "n° de sécu : {}"), True),
    "es_dni": (_dni, "es", ("DNI: {}", "con NIF {} y domicilio", "NIE/DNI {}"), True),
    "it_codice_fiscale": (_codice, "it", ("Codice fiscale: {}", "C.F. {}", "CF {}"), True),
    "br_cpf": (_cpf, "pt", ("CPF: {}", "inscrito no CPF sob o nº {}", "CPF nº {}"), True),
    "in_aadhaar": (_aadhaar, "en", ("Aadhaar: {}", "Aadhaar number {}", "UIDAI no. {}"), False),
    "cn_resident": (_chinese, "zh", ("身份证号：{}", "身份证号码{}", "公民身份号码 {}"), True),
    "kr_rrn": (_korean, "ko", ("주민등록번호: {}", "주민번호 {}"), True),
}


def national(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        maker, language, sentences, unlabelled = NATIONAL[rng.choice(list(NATIONAL))]
        written = maker(rng)
        sentence = rng.choice(BARE[language] if unlabelled and rng.random() < 0.4 else sentences)
        if rng.random() < 0.3 and unlabelled:
            language, sentence = "en", rng.choice(("The ID on file is {}.", "Identity number: {}", "tax id {}"))
        yield document(language, sentence.format(written), rng), written


# --- secrets ---------------------------------------------------------------------------------------------------------


def chosen(rng: random.Random, letters: str, count: int) -> str:
    return "".join(rng.choices(letters, k=count))


LETTERS, HEX, URL = (
    string.ascii_letters + string.digits,
    "0123456789abcdef",
    string.ascii_letters + string.digits + "_-",
)


def keys(rng: random.Random) -> Iterator[tuple[str, str]]:
    makers: tuple[Callable[[], str], ...] = (
        lambda: "AKIA" + chosen(rng, string.ascii_uppercase + "234567", 16),
        lambda: "ghp_" + chosen(rng, LETTERS, 36),
        lambda: "gho_" + chosen(rng, LETTERS, 36),
        lambda: f"github_pat_{chosen(rng, LETTERS, 22)}_{chosen(rng, LETTERS, 59)}",
        lambda: "glpat-" + chosen(rng, URL, 20),
        lambda: f"xoxb-{digits(rng, 12)}-{digits(rng, 12)}-{chosen(rng, LETTERS, 24)}",
        lambda: "AIza" + chosen(rng, URL, 35),
        lambda: "sk_live_" + chosen(rng, LETTERS, 24),
        lambda: "hf_" + chosen(rng, string.ascii_letters, 34),
        lambda: "npm_" + chosen(rng, LETTERS, 36),
        lambda: "pypi-AgEIcHlwaS5vcmc" + chosen(rng, URL, 150),
        lambda: f"sk-proj-{chosen(rng, URL, 48)}T3BlbkFJ{chosen(rng, URL, 48)}",
        lambda: f"sk-ant-api03-{chosen(rng, URL, 93)}AA",
        lambda: f"SG.{chosen(rng, URL, 22)}.{chosen(rng, URL, 43)}",
        lambda: "dop_v1_" + chosen(rng, HEX, 64),
        lambda: "shpat_" + chosen(rng, HEX, 32),
        lambda: "hvs." + chosen(rng, URL, 95),
        lambda: f"{digits(rng, 10, '123456789')}:AA{chosen(rng, URL, 33)}",
        lambda: "GOCSPX-" + chosen(rng, URL, 28),
        lambda: "dapi" + chosen(rng, HEX, 32),
        lambda: "SK" + chosen(rng, HEX, 32),
        lambda: ".".join(
            base64.urlsafe_b64encode(part).decode().rstrip("=")
            for part in (b'{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{digits(rng, 10)}"}}'.encode(), rng.randbytes(32))
        ),
    )
    names = (
        "api_key",
        "API_KEY",
        "client_secret",
        "password",
        "DB_PASSWORD",
        "secret",
        "access_token",
        "auth_token",
        "aws_secret_access_key",
        "SECRET_KEY",
        "private_key",
        "token",
    )
    links = (
        "{} = '{}'",
        '{}="{}"',
        "{}: {}",
        '"{}": "{}"',
        "{}={}",
        "export {}={}",
        "<{}>{}</x>",
        "{} := {}",
        "--{} {}",
    )
    while True:
        if rng.random() < 0.6:
            value = rng.choice(makers)()
            yield (
                rng.choice(
                    (
                        "Use {} to log in.",
                        "key: {}",
                        "'{}'",
                        "curl -H 'Authorization: Bearer {}' https://x.example",
                        "{}",
                        "TOKEN={}",
                        "see {}, then",
                    )
                ).format(value),
                value,
            )
        elif rng.random() < 0.9:
            value = rng.choice(
                (
                    chosen(rng, LETTERS, rng.choice((20, 24, 32, 40, 64))),
                    chosen(rng, HEX, rng.choice((32, 40, 64))),
                    str(uuid.UUID(int=rng.getrandbits(128))),
                )
            )
            yield rng.choice(links).format(rng.choice(names), value), value
        else:
            body = "\n".join(chosen(rng, LETTERS + "+/", 64) for _ in range(12))
            kind = rng.choice(("RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED "))
            yield f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----", body.split("\n")[0]


def credentials(rng: random.Random) -> Iterator[tuple[str, str]]:
    while True:
        scheme = rng.choice(
            ("https", "http", "ftp", "postgres", "mysql", "mongodb+srv", "redis", "amqp", "ssh", "smtp")
        )
        password = (
            chosen(rng, LETTERS + "!$*-_", rng.randint(6, 20))
            if rng.random() < 0.8
            else rng.choice(("hunter2", "letmein", "s3cr3t!", "qwerty12"))
        )
        user = rng.choice(("anna", "root", "admin", "db_user", "", "deploy-bot", "a.smith"))
        host = rng.choice(("host.example", "10.0.0.5", "db:5432", "example.com/x?y=1", "[2001:db8::1]:80", "localhost"))
        yield (
            rng.choice(("{}", "fetch {} now", "DATABASE_URL={}", "'{}'", "<{}>")).format(
                f"{scheme}://{user}:{password}@{host}"
            ),
            f":{password}@",
        )


def wallets(rng: random.Random) -> Iterator[tuple[str, str]]:
    alphabet, bech = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    while True:
        choice = rng.randrange(3)
        if choice == 0:
            body = rng.choice((b"\0", b"\5")) + rng.randbytes(20)
            content = body + hashlib.sha256(hashlib.sha256(body).digest()).digest()[:4]
            number, value = int.from_bytes(content, "big"), ""
            while number:
                number, rest = divmod(number, 58)
                value = alphabet[rest] + value
            value = "1" * (len(content) - len(content.lstrip(b"\0"))) + value
        elif choice == 1:
            data = [0, *(rng.randrange(32) for _ in range(32))]
            check = _bech32([3, 3, 0, 2, 3, *data, *[0] * 6]) ^ 1
            value = "bc1" + "".join(bech[n] for n in (*data, *(check >> 5 * (5 - n) & 31 for n in range(6))))
        else:
            value = "0x" + chosen(rng, "0123456789abcdefABCDEF", 40)
        yield (
            rng.choice(("Send to {} today.", "wallet: {}", "{}", "BTC/ETH address {}", "donations ({})")).format(value)
            if choice < 2
            else f"My ETH wallet is {value}.",
            value,
        )


def _bech32(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for n, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> n & 1 else 0
    return check


MAKERS: dict[str, Callable[[random.Random], Iterator[tuple[str, str]]]] = {
    "email": emails,
    "phone": phones,
    "ipv4": ipv4s,
    "ipv6": ipv6s,
    "card": cards,
    "iban": ibans,
    "national_id": national,
    "key": keys,
    "credentials": credentials,
    "wallet": wallets,
}
WHOLE = ("phone", "national_id")  # makers that give documents
HOSTLY = (
    "The server at {} did not answer.",
    "Blocked {} after ten tries.",
    "login from {}",
    "{} - - [10/Oct/2000:13:55:36] GET /",
    "ping {}",
    "host {}",
    "see {} for more",
)


def planted(kind: str, count: int, seed: int) -> list[Planted]:
    """Documents that each hold one value of a kind."""
    rng = random.Random(f"{kind} {seed}")
    made = MAKERS[kind](rng)
    result = []
    for _ in range(count):
        written, value = next(made)
        if kind not in WHOLE:
            language = rng.choice(list(BARE))
            sentence = rng.choice(HOSTLY if kind in ("ipv4", "ipv6") and rng.random() < 0.5 else BARE[language])
            written = document(language, sentence.replace("{}", written), rng)
        result.append(Planted(kind, written, value))
    return result

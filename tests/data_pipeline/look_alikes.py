"""Texts with what looks like personal data and is none, from a seed: documentation, code and shops are full of it."""

from __future__ import annotations

import functools
import random
import string
import uuid
from collections.abc import Callable

from tests.data_pipeline.planted import BARE, HEX, MAKERS, NATIONAL, Planted, chosen, digits, document, grouped

# National numbers with a check digit.
CHECKED = (
    "de_steuer_id",
    "fr_nir",
    "es_dni",
    "it_codice_fiscale",
    "br_cpf",
    "in_aadhaar",
    "cn_resident",
    "kr_rrn",
)


def _failing(kind: str, rng: random.Random) -> str:
    """A number with one digit changed, so that its check fails."""
    if kind == "national_id":
        value = NATIONAL[rng.choice(CHECKED)][0](rng)
    else:
        value = next(MAKERS[kind](rng))[1].replace("\n", " ")
    places = [n for n, c in enumerate(value) if c.isdigit()]
    place = places[-1 if kind == "national_id" and value[-1].isdigit() else -2]
    return value[:place] + str((int(value[place]) + rng.randint(1, 9)) % 10) + value[place + 1 :]


def _isbn(rng: random.Random) -> str:
    body = "978" + digits(rng, 9)
    value = body + str(-sum(int(d) * (1 + 2 * (n % 2)) for n, d in enumerate(body)) % 10)
    return rng.choice(("ISBN {}", "{}", "ISBN-13: {}")).format(
        rng.choice((value, grouped(value, (3, 1, 4, 4), "-"), grouped(value, (3, 2, 5, 2), "-")))
    )


def _version(rng: random.Random) -> str:
    parts = [
        str(rng.choice((rng.randint(0, 20), rng.randint(0, 20), rng.randint(0, 250), rng.randint(0, 9999))))
        for _ in range(rng.choice((3, 4, 4, 4)))
    ]
    value = ".".join(parts)
    return rng.choice(
        (
            "version {}",
            "v{}",
            "libfoo-{}",
            "libfoo-{}.tar.gz",
            "release {}",
            "pkg=={}",
            "^{}",
            "foo@{}",
            "upgrade to {}",
            "Version: {}-rc1",
            "kernel {}",
        )
    ).format(value)


def _date(rng: random.Random) -> str:
    y, m, d, h, mi, s = (
        rng.randint(1970, 2030),
        rng.randint(1, 12),
        rng.randint(1, 28),
        rng.randint(0, 23),
        rng.randint(0, 59),
        rng.randint(0, 59),
    )
    return rng.choice(
        (
            f"{y}-{m:02}-{d:02} {h:02}:{mi:02}:{s:02}",
            f"{y}-{m:02}-{d:02}T{h:02}:{mi:02}:{s:02}Z",
            f"{d:02}.{m:02}.{y}",
            f"{m:02}/{d:02}/{y}",
            f"{y}{m:02}{d:02}{h:02}{mi:02}{s:02}",
            f"{y}-{m:02}-{d:02}",
            f"{d:02}-{m:02}-{y} {h:02}:{mi:02}",
            str(rng.randint(10**9, 2 * 10**9)),
            str(rng.randint(10**12, 2 * 10**12)),
            f"{y} - {y + 5}",
            f"{h:02}:{mi:02}:{s:02}.123456",
            f"{d:02}.{m:02}.{y} - {d + 1:02}.{m:02}.{y}",
            str(rng.randint(10**15, 2 * 10**15)),
        )
    )


def _price(rng: random.Random) -> str:
    n = rng.randint(1000, 99_999_999)
    return rng.choice(
        (
            f"${n:,}",
            f"€{n:,}.00",
            f"{n:,} EUR".replace(",", "."),
            f"{n:,} kr".replace(",", " "),
            f"USD {n}",
            f"£{n / 100:.2f}",
            f"{n:,}.50 €",
            f"¥{n}",
        )
    )


def _part(rng: random.Random) -> str:
    a = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 4)))
    return rng.choice(
        (
            f"PN {digits(rng, 4)}-{digits(rng, 4)}",
            f"{a}-{digits(rng, 5)}",
            f"SKU {digits(rng, 8)}",
            f"Part no. {digits(rng, 3)}-{digits(rng, 3)}-{digits(rng, 4)}",
            f"{a}{digits(rng, 6)}-{a}",
            f"order #{digits(rng, 10)}",
            f"model {a}-{digits(rng, 3)}-{digits(rng, 2)}",
            f"S/N {a}{digits(rng, 8)}",
            f"invoice {digits(rng, 9)}",
            f"{digits(rng, 3)}-{a}-{digits(rng, 4)}",
            f"article {digits(rng, 2)}.{digits(rng, 3)}.{digits(rng, 3)}",
            f"ticket {digits(rng, 7)}",
            f"CVE-{rng.randint(1999, 2030)}-{digits(rng, 5)}",
            f"RFC {digits(rng, 4)}",
        )
    )


def _code(rng: random.Random) -> str:
    return rng.choice(
        (
            "@decorator\ndef f(x): return a @ b",
            "y = W @ x.transpose()",
            "a[i] = b[0:10:2] + 0x1F",
            "for i in range(1000000):",
            "std::vector<int> v; a::b::c",
            "user@host:~$ ls -l",
            "git@github.com:user/repo.git",
            "getty@tty1.service",
            "npm install left-pad@1.3.0",
            "icon@2x.png",
            "secret = load_secret_from_environment()",
            "api_key: your_api_key_goes_here_please",
            "password = getpass.getpass()",
            "assert x == 1234567890",
            "int mask = 0xDEADBEEF;",
            "SELECT * FROM t WHERE id = 4711",
            "token = tokenizer.next_token()",
            "key = 'value'",
            "http://localhost:8080/path?x=1",
            "https://user:password@host/",
            "127.0.0.1:5000",
            "192.168.1.17",
            "10.0.0.254",
            "::1",
            "fe80::1ff:fe23:4567:890a",
            "2001:db8::8a2e:370:7334",
            "203.0.113.77",
            "255.255.255.0",
            "A@B",
            "2^31 - 1 = 2147483647",
            "-webkit-transform: translate(10px)",
            "if (a->b && c->d) { return 1; }",
        )
    )


def _math(rng: random.Random) -> str:
    return rng.choice(
        (
            "3.14159265358979323846",
            "1 + 2 + 3 = 6",
            f"{rng.random():.16f}",
            f"{rng.randint(10**6, 10**7)} x {rng.randint(100, 999)}",
            "6.02214076e23",
            "x = 12345.6789",
            f"{rng.randint(1, 99)} 000 000",
            "1 000 000 000",
            f"({rng.randint(100, 999)}) {rng.randint(10, 99)}",
            "0.0001 0.0010 0.0100 0.1000",
            f"1 2 3 4 5 6 7 8 9 {rng.randint(10, 99)}",
            f"{rng.randint(10, 99)}% of {rng.randint(10**6, 10**8)}",
            f"{digits(rng, 3)} {digits(rng, 3)} {digits(rng, 2)}",
            f"| {digits(rng, 4)} | {digits(rng, 4)} | {digits(rng, 4)} |",
            f"{rng.uniform(-90, 90):.6f}, {rng.uniform(-180, 180):.6f}",
            f"{digits(rng, 20, '123456789')}",
        )
    )


LOOK_ALIKES: dict[str, Callable[[random.Random], str]] = {
    "version": _version,
    "hash": lambda rng: rng.choice(("{}", "commit {}", "sha256:{}", "md5 {}")).format(
        chosen(rng, HEX, rng.choice((7, 12, 32, 40, 64)))
    ),
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128))),
    "time": _date,
    "isbn": _isbn,
    "part": _part,
    "price": _price,
    "colour": lambda rng: rng.choice(("#{}", "color: #{};")).format(chosen(rng, HEX, rng.choice((3, 6, 8)))),
    "file": lambda rng: rng.choice(
        (
            "IMG_{}.jpg",
            "scan-{}.pdf",
            "/var/log/app.{}.log",
            "DSC{}.NEF",
            "report_{}.xlsx",
            "backup-{}.tar.gz",
            "https://x.example/p/{}.html",
        )
    ).format(digits(rng, rng.choice((4, 8, 10, 14)))),
    "code": _code,
    "mathematics": _math,
    "mac": lambda rng: rng.choice((":", "-", "-")).join(chosen(rng, HEX, 2) for _ in range(6)),
    "section": lambda rng: rng.choice(("Section {}", "§ {}", "{} Overview", "see {}", "Chapter {}", "Table {}")).format(
        ".".join(str(rng.randint(1, 15)) for _ in range(rng.choice((3, 4, 5))))
    ),
    "oid": lambda rng: "1.3.6.1.4.1." + ".".join(str(rng.randint(1, 9999)) for _ in range(rng.randint(2, 6))),
    "failing card": functools.partial(_failing, "card"),
    "failing iban": functools.partial(_failing, "iban"),
    "failing national id": functools.partial(_failing, "national_id"),
    "doi": lambda rng: rng.choice(
        (
            f"doi:10.{digits(rng, 4)}/{digits(rng, 6)}.{digits(rng, 7)}",
            f"arXiv:{digits(rng, 4)}.{digits(rng, 5)}",
            f"ISSN {digits(rng, 4)}-{digits(rng, 4)}",
        )
    ),
}


def look_alikes(count: int, seed: int) -> list[Planted]:
    """Documents that each hold one thing that looks like personal data and is none; `kind` says what it is."""
    rng = random.Random(f"look-alikes {seed}")
    names = list(LOOK_ALIKES)
    result = []
    for n in range(count):
        name = names[n % len(names)]
        value = LOOK_ALIKES[name](rng)
        language = rng.choice(list(BARE))
        sentence = rng.choice(BARE["en" if rng.random() < 0.5 else language])
        result.append(Planted(name, document(language, sentence.replace("{}", value), rng), value))
    return result

"""Personal data and secrets do not survive; what only looks like them does.

Every value here is invented, or an example of those who give such numbers out.
"""

from __future__ import annotations

import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.private import iban, national
from data_pipeline.private.found import KINDS
from data_pipeline.private.needles import Needles
from data_pipeline.private.pseudonym import pseudonym
from data_pipeline.private.scrub import Scrubbed, scrub
from tests.data_pipeline.look_alikes import look_alikes
from tests.data_pipeline.planted import MAKERS, NATIONAL, Planted, document, planted

SEED = 20261126
KEY = b"sixteen bytes or more"
FEWEST_FOUND, MOST_ALTERED = 0.97, 0.01

# Put together at run time, so that no scanner takes this file for a leak.
ALPHABET = string.ascii_uppercase + string.digits
MIXED = (string.ascii_letters + string.digits) * 3
KEYS = {
    "aws": "AKIA" + ALPHABET[7:23],
    "aws temporary": "ASIA" + ALPHABET[5:21],
    "github": "ghp_" + MIXED[:36],
    "github app": "ghs_" + MIXED[3:39],
    "github fine-grained": "github_pat_" + MIXED[:22] + "_" + MIXED[:59],
    "gitlab": "glpat-" + MIXED[:20],
    "slack": "xoxb-" + "123456789012-" + MIXED[:24],
    "google": "AIza" + MIXED[:35],
    "stripe": "sk_live_" + MIXED[:24],
    "hugging face": "hf_" + MIXED[:34],
    "jwt": ".".join(("eyJ" + MIXED[:20], "eyJ" + MIXED[5:40], MIXED[:43])),
}


# A number for each scheme, as documentation of the schemes and of python-stdnum has them.
NUMBERS = {
    "us_ssn": "536-90-4399",
    "us_itin": "912-90-3456",
    "gb_nhs": "943-476-5870",
    "de_steuer_id": "36 574 261 809",
    "fr_nir": "2 95 10 99 126 111 93",
    "br_cpf": "390.533.447-05",
    "in_aadhaar": "2341 2341 2346",
    "cn_resident": "360426199101010071",
    "kr_rrn": "971013-9019902",
    "jp_my_number": "6214 9832 0257",
    "pl_pesel": "44051401359",
    "se_personnummer": "880320-0016",
    "no_fodselsnummer": "151086 95088",
    "dk_cpr": "211062-5629",
    "cz_rodne_cislo": "710319/2745",
    "ro_cnp": "1630615123457",
    "be_rijksregister": "85.07.30-033.28",
    "nl_bsn": "1112.22.333",
    "pt_nif": "501964843",
    "tr_kimlik": "17291716060",
    "ch_ahv": "756.9217.0769.85",
    "at_svnr": "1237 010180",
    "ca_sin": "123-456-782",
    "au_tfn": "123 456 782",
    "za_id": "750330 5044 089",
    "il_id": "03933742-3",
    "cl_rut": "76086428-5",
    "th_id": "1-2345-45678-78-1",
    "ru_snils": "112-233-445 95",
    "ru_inn": "123456789047",
    "baltic_code": "36805280109",
    "bg_egn": "8032056031",
    "gr_amka": "01013099997",
    "yu_jmbg": "0101006500006",
    "hr_oib": "33392005961",
    "id_nik": "3171011708450001",
    "my_nric": "770305-02-1234",
    "gb_nino": "AB123456C",
    "gb_nino_grouped": "AB 12 34 56 C",
    "fr_nir_corsica": "2 53 07 2B 073 004 70",
    "es_dni": "54362315-K",
    "es_nie": "X-2482300-W",
    "it_codice_fiscale": "RCCMNL83S18D969H",
    "in_pan": "ACUPA7085R",
    "cn_resident_x": "11010519491231002X",
    "fi_hetu": "131052-308T",
    "ie_pps": "6433435FW",
    "sg_nric": "S1234567D",
    "tw_id": "A123456789",
    "hk_id": "A123456(3)",
    "mx_curp": "BOXW310820HNERXN09",
    "cl_rut_k": "12.345.006-K",
}

# An account number of each country, as the registry of ISO 13616 gives them.
IBANS = """
AD1200012030200359100100 AE070331234567890123456 AL47212110090000000235698741 AT611904300234573201
AZ21NABZ00000000137010001944 BA391290079401028494 BE68539007547034 BG80BNBG96611020345678 BH67BMAG00001299123456
BI4210000100010000332045181 BR1800360305000010009795493C1 BY13NBRB3600900000002Z00AB00 CH9300762011623852957
CR05015202001026284066 CY17002001280000001200527600 CZ6508000000192000145399 DE89370400440532013000
DJ2100010000000154000100186 DK5000400440116243 DO28BAGR00000001212453611324 EE382200221020145685
EG380019000500000000263180002 ES9121000418450200051332 FI2112345600000785 FK88SC123456789012 FO6264600001631634
FR1420041010050500013M02606 GB29NWBK60161331926819 GE29NB0000000101904917 GI75NWBK000000007099453
GL8964710001000206 GR1601101250000000012300695 GT82TRAJ01020000001210029690 HN88CABF00000000000250005469
HR1210010051863000160 HU42117730161111101800000000 IE29AIBK93115212345678 IL620108000000099999999
IQ98NBIQ850123456789012 IS140159260076545510730339 IT60X0542811101000000123456 JO94CBJO0010000000000131000302
KW81CBKU0000000000001234560101 KZ86125KZT5004100100 LB62099900000001001901229114
LC55HEMM000100010012001200023015 LI21088100002324013AA LT121000011101001000 LU280019400644750000
LV80BANK0000435195001 LY83002048000020100120361 MC5811222000010123456789030 MD24AG000225100013104168
ME25505000012345678951 MK07250120000058984 MN121234123456789123 MR1300020001010000123456753
MT84MALT011000012345MTLCAST001S MU17BOMM0101101030300200000MUR NI45BAPR00000013000003558124 NL91ABNA0417164300
NO9386011117947 OM810180000001299123456 PK36SCBL0000001123456702 PL61109010140000071219812874
PS92PALS000000000400123456702 PT50000201231234567890154 QA58DOHB00001234567890ABCDEFG RO49AAAA1B31007593840000
RS35260005601001611379 RU0304452522540817810538091310419 SA0380000000608010167519
SC18SSCB11010000000000001497USD SD2129010501234001 SE4550000000058398257466 SI56263300012039086
SK3112000000198742637541 SM86U0322509800000000270100 SO211000001001000100141 ST23000100010051845310146
SV62CENR00000000000000700025 TL380080012345678910157 TN5910006035183598478831 TR330006100519786457841326
UA213223130000026007233566001 VA59001123000012345678 VG96VPVG0000012345678901 XK051212012345678906
YE15CBYE0001018861234567891234
"""


@pytest.mark.parametrize(
    ("counts", "left", "found"),
    [({"phone": 1}, "", True), ({}, "", False), ({"card": 1}, "", False), ({"phone": 1}, " 555-26 ", False)],
)
def test_a_value_is_found_where_its_kind_was_counted_and_nothing_is_left(
    counts: dict[str, int], left: str, found: bool
) -> None:
    assert Planted("phone", "", "415-555-2671").is_found(Scrubbed(f"call <PHONE>{left}", counts)) is found


@pytest.mark.parametrize("scheme", national.SCHEMES, ids=lambda scheme: scheme.name)
def test_every_scheme_knows_a_number_that_its_country_gives_as_an_example(scheme: national.Scheme) -> None:
    number = NUMBERS[scheme.name]
    assert scheme.check("".join(filter(str.isalnum, number)))
    assert scrub(f"Her identity number is {number}, they said.", language="en").counts == {"national_id": 1}


@pytest.mark.parametrize("example", IBANS.split())
def test_the_example_of_every_country_is_an_account_number(example: str) -> None:
    grouped = " ".join(example[start : start + 4] for start in range(0, len(example), 4))
    assert scrub(f"Pay to {example} or {grouped}.").text == "Pay to <IBAN> or <IBAN>."


def test_every_scheme_and_every_country_has_an_example() -> None:
    assert list(NUMBERS) == [one.name for one in national.SCHEMES]
    assert [one[:2] for one in IBANS.split()] == sorted(iban.LENGTHS)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_values_are_found(kind: str) -> None:
    documents = planted(kind, 500, SEED)
    assert len({one.value for one in documents}) > 250
    missed = [one.value for one in documents if not one.is_found(scrub(one.text))]
    assert 1 - len(missed) / len(documents) >= FEWEST_FOUND, missed


@pytest.mark.parametrize("scheme", NATIONAL)
def test_planted_numbers_of_every_country_are_found(scheme: str) -> None:
    rng = random.Random(SEED)
    make, language, sentences, _ = NATIONAL[scheme]
    missed = []
    for _ in range(100):
        value = make(rng)
        one = Planted("national_id", document(language, rng.choice(sentences).format(value), rng), value)
        if not one.is_found(scrub(one.text)):
            missed.append(value)
    assert len(missed) <= 3, missed


def test_look_alikes_survive() -> None:
    documents = look_alikes(4000, SEED)
    altered = [(one.kind, one.value) for one in documents if scrub(one.text).text != one.text]
    assert len(altered) / len(documents) <= MOST_ALTERED, altered


@pytest.mark.parametrize("kind", KINDS)
def test_scrubbing_planted_texts_twice_changes_nothing_more(kind: str) -> None:
    for one in planted(kind, 60, SEED + 1):
        once = scrub(one.text, key=KEY).text
        assert scrub(once, key=KEY).text == once
        assert scrub(once).counts == {}


def test_what_one_item_kept_from_being_found_is_found_at_once() -> None:
    scrubbed = scrub("seen 2606:4700::1111+49 2120176 there")
    assert scrubbed.counts == {"ipv6": 1, "phone": 1}
    assert scrub(scrubbed.text).text == scrubbed.text == "seen <IP><PHONE> there"


@given(st.text("ab1@. <>=_-:'\nAKIAsecretkey", max_size=80))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once = scrub(text).text
    assert scrub(once) == scrub(once).__class__(once)


@given(st.text("0123456789 +-./()\n", max_size=80))
def test_scrubbing_numbers_twice_changes_nothing_more(text: str) -> None:
    once = scrub("Tel " + text, language="de").text
    assert scrub(once, language="de").text == once


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_can_be_scrubbed(text: str) -> None:
    scrub(text)


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_are_replaced_and_counted(key: str) -> None:
    scrubbed = scrub(f"Use '{key}' to log in; then {key}.")
    assert scrubbed.text == "Use '<KEY>' to log in; then <KEY>."
    assert scrubbed.counts == {"key": 2}


@pytest.mark.parametrize("end", ["-----END RSA PRIVATE KEY-----", ""])
def test_private_keys_go_with_their_body(end: str) -> None:
    body = "\n".join(MIXED[:64] for _ in range(5))
    scrubbed = scrub(f"Before\n-----BEGIN RSA PRIVATE KEY-----\n{body}\n{end}")
    assert MIXED[:16] not in scrubbed.text
    assert scrubbed.text.startswith("Before\n<KEY>")
    assert scrubbed.counts == {"key": 1}


@pytest.mark.parametrize(
    "line",
    [
        "client_secret = '{}'",
        'API_KEY="{}"',
        "password: {}",
        '{{"access_token": "{}"}}',
        "https://docs.example/x?api_key={}&page=2",
        "deploy --auth-token {} now",
        "the api key is {}",
        "Authorization: Bearer {}",
    ],
)
def test_random_values_given_to_secret_names_go(line: str) -> None:
    value = "q7Rw2ZpX9vLk4TnB8sYd"
    scrubbed = scrub(line.format(value))
    assert scrubbed.text == line.format("<KEY>")
    assert scrubbed.counts == {"key": 1}


@pytest.mark.parametrize(
    "text",
    [
        "secret = load_secret_from_environment()",
        "api_key: your_api_key_goes_here_please",
        "password = 'aaaaaaaaaaaaaaaa1111'",
        "The key = value pairs of a token: see tokenizer_configuration_file.",
        "commit 3f2a9c1b7e6d5f4a3b2c1d0e9f8a7b6c5d4e3f2a",
        "@decorator\ndef f(x): return a @ b",
        "follow @someone, price 5@3.20, array[1]@2",
        "y = W@x.transpose() and getty@tty1.service, icon@2x.png",
        "look at the house dot and at last",
        "git clone git@github.com:user/repo.git",
        "https://user:password@host/ and https://$USER:$PASS@host/",
        "version 6.1.192.2, Section 12.4.1.3, 1.2.3.4.5 and libfoo-31.0.15.245.tar.gz",
        "127.0.0.1, 10.1.2.3, 192.168.7.7, 203.0.113.9, 255.255.255.0, 2001:db8::1, fe80::1, ::1, std::vec, 12:30:45",
        "00:1b:44:11:3a:b7 is a MAC address",
        "the network 81.2.69.0/24 and 2a02:810::/32",
        "(1857-1949), 2023-01-02 03:04:05, 02.03.2021 - 04.03.2021, 1700000000, 1700000000000",
        "ISBN 978-3-16-148410-0, order #4111111111, PN 415-555-2671, 1.234.567,89 EUR, $4,111,111",
        "See /text/shared/02/11160000.xhp, IMG_20230102030405.jpg, Boston, MA 02110-1301",
        "account number 4155552671, part no. 4155552671, order 415-555-2671, 12 345 678 EUR, 0306406152 as a book",
        "a ST380021A disk, smb://usuario:contraseña@servidor/impresora, 0 2021-08-09 02:02 ./usr/",
        "249. 3.249. once_cell\n    250. 3.250. one_sided_range, scan report for debian (192.168.122.57)",
        "Cell Objects\n(c) Copyright 2001-2026, geometry 1440 900 1440 32, inode number 4072121, 377 610 987 1597 2584",
        "a large number of milliseconds such as 100000000, <Recursion on list with id=135143996>",
        "4111 1111 1111 1112 fails, and so do DE89 3704 0044 0532 0130 01 and 12345678A",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert scrub(text, language="en") == scrub(text).__class__(text)


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "ann@mail.example",
        "a.b-c+tag@sub.domain.example",
        "user_1@xn--bcher-kva.example",
        "müller@bücher.example",
        "O'Neil@post.example",
    ],
)
def test_addresses_are_replaced_and_counted(address: str) -> None:
    scrubbed = scrub(f"Write to <{address}>, or mailto:{address}.")
    assert scrubbed.text == "Write to <<EMAIL>>, or mailto:<EMAIL>."
    assert scrubbed.counts == {"email": 2}


@pytest.mark.parametrize(
    "written",
    [
        "ann [at] mail [dot] org",
        "ann(at)mail.org",
        "ann AT mail DOT org",
        "ann&#64;mail.org",
        "ann＠mail.org",
        "ann%40mail.org",
    ],
)
def test_addresses_that_hide_are_the_same_address(written: str) -> None:
    assert scrub(f"Write to {written} today.", key=KEY).text == scrub("Write to ann@mail.org today.", key=KEY).text


def test_national_telephone_numbers_count_in_their_languages() -> None:
    assert scrub("Kiefernweg 3, 030 12345678", language="de").counts == {"phone": 1}
    assert scrub("Kiefernweg 3, 030 12345678", language="ja").counts == {}
    assert scrub("Kiefernweg 3, Tel. 030 12345678", language="ja").counts == {"phone": 1}
    assert scrub("5, rue Haute, 01 23 45 67 89", language="fr").counts == {"phone": 1}
    assert scrub("0x00 01 23 45 67 89", language="en").counts == {}


def test_a_telephone_number_goes_with_its_extension_and_across_a_line_end() -> None:
    assert scrub("Call +1 212-555-0123 ext. 45 now").text == "Call <PHONE> now"
    assert scrub("Tel. +49 30\n  12345678.").text == "Tel. <PHONE>."


@pytest.mark.parametrize(
    "text",
    [
        "John Doe,555-867-5309,London",
        '{"phone": "+1-202-555-0147"}',
        '<a href="tel:+442079460958">call</a>',
        "(555) 123-4567",
        "Ph: 98765-43210",
        "T: +41 44 000 00 00",
        "8 (495) 123-45-67",
        "☎ 01 45 67 89 10",
        "+１ ２１２ ５５５ ０１２３",
        "هاتف: +٢٠ ٢ ٢٣٤٥٦٧٨٩",
        "tel +49\u201130\u201112345678",
    ],
)
def test_telephone_numbers_are_found_in_forms_tables_and_pages(text: str) -> None:
    scrubbed = scrub(text)
    assert scrubbed.counts == {"phone": 1}
    assert sum(character.isdecimal() for character in scrubbed.text) == 0


def test_what_stands_before_four_numbers_decides() -> None:
    assert scrub("The server 31.8.15.22 is down").counts == {"ipv4": 1}
    assert scrub("upgrade to 131.98.115.222").counts == {}
    assert scrub("seen: 131.98.115.222").counts == {"ipv4": 1}
    assert scrub("seen: 3.9.1.22").counts == {}


# --- pseudonyms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forms",
    [
        ("+1 212 555 0123", "+1 (212) 555-0123", "(212) 555-0123"),
        ("ann@mail.org", "Ann@Mail.org"),
        ("DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
        ("4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111"),
        ("2606:4700::1111", "2606:4700:0:0:0:0:0:1111"),
    ],
)
def test_the_same_value_gets_the_same_name_however_it_is_written(forms: tuple[str, ...]) -> None:
    names = {scrub(f"It is {form} here.", language="en", key=KEY).text for form in forms}
    assert len(names) == 1
    assert "-" in names.pop()


def test_names_depend_on_nothing_but_key_kind_and_value() -> None:
    first, second = "ann@mail.org wrote", "then bob@mail.org, and ann@mail.org"
    name = scrub(first, key=KEY).text.split()[0]
    assert scrub(second, key=KEY).text.endswith(name)
    assert scrub(first, key=KEY[::-1]).text.split()[0] != name
    assert pseudonym("email", "1", KEY) != pseudonym("phone", "1", KEY).replace("PHONE", "EMAIL")
    assert len({pseudonym("email", str(n), KEY) for n in range(2000)}) == 2000


def test_a_key_that_can_be_tried_out_is_refused() -> None:
    with pytest.raises(ValueError, match="15 bytes"):
        scrub("ann@mail.org", key=b"x" * 15)


def test_items_are_counted_by_kind() -> None:
    scrubbed = scrub("ann@mail.org and bob@mail.org, +49 30 12345678, https://ann:hunter2@host.example/")
    assert scrubbed.counts == {"email": 2, "phone": 1, "credentials": 1}
    assert scrubbed.items == 4
    assert set(scrubbed.counts) <= set(KINDS) == set(MAKERS)


def test_long_documents_are_scrubbed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {n} of ann{n % 7}@mail.org and more" for n in range(200)]
    text = "\n".join(lines)
    whole = scrub(text, key=KEY)
    monkeypatch.setattr("data_pipeline.private.scrub.LONGEST", 300)
    assert scrub(text, key=KEY) == whole
    assert scrub(text.replace("\n", " "), key=KEY).counts == {"email": 200}
    assert scrub("x" * 1000).text == "x" * 1000


# --- cost ------------------------------------------------------------------------------------------------------------


@given(st.text("abcé", max_size=40), st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=8))
def test_needles_are_found_wherever_they_stand(text: str, words: list[str]) -> None:
    assert Needles(words).within(text) == {word for word in words if word in text}


@pytest.mark.parametrize(
    "hostile",
    [
        "a." * 200_000 + "@" + "a." * 200_000,
        "@a.b" * 50_000,
        "secret=" * 50_000,
        "-----BEGIN PRIVATE KEY-----" * 2_000,
        "1 " * 100_000,
        "+1234567 " * 20_000,
        "0" * 200_000,
        "A1" * 100_000,
        "DE89 " * 40_000,
        "1.2.3.4." * 15_000,
        "2001:" * 40_000,
        "token " * 60_000 + "x" * 100_000,
        "(at)" * 50_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_input_takes_linear_time(hostile: str) -> None:
    scrub("")  # compile
    begin = time.process_time()
    scrub(hostile, language="en")
    assert time.process_time() - begin < 5

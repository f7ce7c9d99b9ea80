"""Personal data and secrets do not survive; what only looks like them does. Every value here is invented."""

from __future__ import annotations

import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.private.found import KINDS
from data_pipeline.private.needles import Needles
from data_pipeline.private.pseudonym import pseudonym
from data_pipeline.private.scrub import scrub
from tests.data_pipeline.planted import MAKERS, NATIONAL, document, look_alikes, planted

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


@pytest.mark.parametrize("kind", KINDS)
def test_planted_values_are_found(kind: str) -> None:
    documents = planted(kind, 500, SEED)
    assert len({one.value for one in documents}) > 250
    missed = [one.value for one in documents if one.value in scrub(one.text).text]
    assert 1 - len(missed) / len(documents) >= FEWEST_FOUND, missed


@pytest.mark.parametrize("scheme", NATIONAL)
def test_planted_numbers_of_every_country_are_found(scheme: str) -> None:
    rng = random.Random(SEED)
    make, language, sentences, _ = NATIONAL[scheme]
    missed = []
    for _ in range(100):
        value = make(rng)
        if value in scrub(document(language, rng.choice(sentences).format(value), rng)).text:
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
        "T: +41 44 668 18 00",
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
    assert [scrubbed.reason(most) for most in (None, 4, 3)] == ["", "", "private_items"]
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

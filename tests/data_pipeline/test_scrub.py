"""Addresses and keys do not survive; ordinary text does. Every credential here is invented."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.scrub import scrub

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


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_are_replaced_and_counted(key: str) -> None:
    scrubbed = scrub(f"Use '{key}' to log in; then {key}.")
    assert scrubbed.text == "Use '<KEY>' to log in; then <KEY>."
    assert (scrubbed.keys, scrubbed.emails) == (2, 0)


@pytest.mark.parametrize("end", ["-----END RSA PRIVATE KEY-----", ""])
def test_private_keys_go_with_their_body(end: str) -> None:
    body = "\n".join(MIXED[:64] for _ in range(5))
    scrubbed = scrub(f"Before\n-----BEGIN RSA PRIVATE KEY-----\n{body}\n{end}")
    assert MIXED[:16] not in scrubbed.text
    assert scrubbed.text.startswith("Before\n<KEY>")
    assert scrubbed.keys == 1


@pytest.mark.parametrize(
    "line",
    [
        "client_secret = '{}'",
        'API_KEY="{}"',
        "password: {}",
        '{{"access_token": "{}"}}',
        "https://docs.example/x?api_key={}&page=2",
    ],
)
def test_random_values_given_to_secret_names_go(line: str) -> None:
    value = "q7Rw2ZpX9vLk4TnB8sYd"
    scrubbed = scrub(line.format(value))
    assert scrubbed.text == line.format("<KEY>")
    assert scrubbed.keys == 1


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
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    scrubbed = scrub(text)
    assert (scrubbed.text, scrubbed.keys, scrubbed.emails) == (text, 0, 0)


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
    assert scrubbed.emails == 2


@given(st.text("ab1@. <>=_-:'\nAKIAsecretkey", max_size=80))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once = scrub(text).text
    again = scrub(once)
    assert (again.text, again.keys, again.emails) == (once, 0, 0)


def test_long_hostile_input_takes_linear_time() -> None:
    scrub("a." * 200_000 + "@" + "a." * 200_000 + "secret=" * 50_000 + "-----BEGIN PRIVATE KEY-----" * 2_000)

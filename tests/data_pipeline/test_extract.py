"""Content becomes the text its author wrote: decoded, repaired and nothing more."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Record
from data_pipeline.extract import UnreadableError, decode, docstrings, extract, html, long_description, read, repair
from data_pipeline.extract.repair import NOT_CHARACTERS, NOT_PLAIN
from data_pipeline.sources import formats


def test_mojibake_is_repaired() -> None:
    assert repair("Le cafÃ© dâ€™Ã©tÃ© est fermÃ©.") == "Le café d’été est fermé."


ODD = st.sampled_from(["cafÃ©", "â€™", "\x85", "\u2028", "\u206a", "\ufeff", "œ\n", "水", "№", "Ð¿Ñ€", "a", " ", "\n"])


@given(st.lists(ODD | st.text(max_size=4), max_size=9).map("".join))
def test_no_line_is_spared_that_the_repair_would_change(text: str) -> None:
    """What is skipped to save time is what ftfy leaves alone, line by line."""
    plain = NOT_PLAIN.sub("", text)  # of which ours takes care itself
    keys = {"unescape_html": False, "fix_latin_ligatures": False, "fix_character_width": False, "uncurl_quotes": False}
    by_line = "\n".join(ftfy.fix_text(line, normalization=None, **keys) for line in plain.split("\n"))  # type: ignore[arg-type]
    assert repair(plain) == NOT_CHARACTERS.sub("", by_line).strip()


@pytest.mark.parametrize(
    "text", ["“curled” ‘quotes’", "ﬁne oﬃce", "ＦＵＬＬ　ｗｉｄｔｈ", "&amp; &eacute;", "e\u0301 is not é", "…"]
)
def test_what_is_not_broken_is_left_alone(text: str) -> None:
    assert repair(text) == text


def test_line_ends_and_controls_are_normalised() -> None:
    assert repair("\ufeffa\r\nb\rc\fd\0e\x1b[31mred\x1b[0m\u2028f\x07\n") == "a\nb\nc\ndered\nf"


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_repaired_text_can_always_be_written(text: str) -> None:
    once = repair(text)
    once.encode()
    assert not set(once) & {chr(c) for c in (*range(9), *range(11, 32), *range(127, 160))}


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("Grüße aus Köln".encode(), ""),
        ("Grüße aus Köln".encode("utf-8-sig"), ""),
        ("Grüße aus Köln".encode("utf-16"), ""),
        ("Grüße aus Köln".encode("iso-8859-1"), "iso-8859-1"),
        ("Grüße aus Köln".encode("windows-1252"), "windows-1252"),
        ("Grüße aus Köln".encode(), "no-such-charset"),
        ("Grüße aus Köln".encode(), "undefined"),
        ("Grüße aus Köln".encode(), "idna"),
        ("Grüße aus Köln".encode(), "punycode"),
        ("Grüße aus Köln".encode(), "utf-8\0"),
        ("Grüße aus Köln".encode(), "ütf-8"),
        ("Grüße aus Köln".encode(), "hex"),
        ("Grüße aus Köln".encode("utf-32"), ""),
    ],
)
def test_encodings_are_recognised(content: bytes, charset: str) -> None:
    assert decode(content, "text", charset) == "Grüße aus Köln"


def test_html_meta_charset_is_believed_when_nothing_else_fits() -> None:
    page = '<html><head><meta charset="windows-1251"></head><body><p>Привет, мир</p></body></html>'
    assert "Привет, мир" in (extract(Record(page.encode("windows-1251"), "html", "x")) or "")


def test_html_gives_its_main_content_only() -> None:
    page = (
        "<html><head><title>T</title><script>alert(1)</script></head><body><nav><a href='/'>Home</a></nav>"
        "<main><h1>Bread</h1><p>Mix <b>flour</b> &amp; water.</p></main><footer>Imprint</footer></body></html>"
    )
    text = extract(Record(page, "html", "x"))
    assert text == "Bread\n\nMix flour & water."


SENTENCES = "A sentence of some length, about the weather of that day and of the next one, stands here. "
MENU = "".join(f"<li><a href='/{n}'>Section number {n} of this site</a></li>" for n in range(60))


def page(main: str) -> str:
    return f"<html><body><nav><ul>{MENU}</ul></nav>{main}</body></html>"


def opinions(monkeypatch: pytest.MonkeyPatch, first: str, trafilatura: str, justext: str) -> list[str]:
    """Answers of extractors in place of theirs; returns the list of those that are asked."""
    asked: list[str] = []

    def answer(name: str, text: str) -> Callable[[str], str]:
        def extractor(page: str) -> str:
            asked.append(name)
            return text

        return extractor

    monkeypatch.setattr(html, "_resiliparse", lambda page, main_content: first if main_content else "x" * 1000)
    monkeypatch.setattr(html, "_trafilatura", answer("trafilatura", trafilatura))
    monkeypatch.setattr(html, "_justext", answer("justext", justext))
    return asked


def test_second_opinions_are_asked_only_where_the_first_kept_little(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = opinions(monkeypatch, "f" * 200, "t" * 900, "j" * 900)
    assert html.main_text("p" * 5000) == ("f" * 200, "resiliparse")
    assert asked == []
    asked = opinions(monkeypatch, "f" * 199, "t" * 900, "j" * 900)
    assert html.main_text("p" * 5000) == ("t" * 900, "trafilatura")
    assert asked == ["trafilatura", "justext"]


@pytest.mark.parametrize(
    ("sizes", "winner"),
    [
        ((100, 151, 151), "trafilatura"),
        ((100, 151, 152), "justext"),
        ((100, 150, 150), "resiliparse"),
        ((0, 1, 0), "trafilatura"),
        ((0, 0, 0), "resiliparse"),
    ],
)
def test_the_longest_opinion_wins_where_it_found_clearly_more(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int], winner: str
) -> None:
    first, second, third = (letter * size for letter, size in zip("ftj", sizes, strict=True))
    opinions(monkeypatch, first, second, third)
    won = {"resiliparse": first, "trafilatura": second, "justext": third}[winner]
    assert html.main_text("p" * 5000) == (won, winner)


def test_a_page_that_the_first_extractor_takes_for_a_menu_is_not_lost() -> None:
    """Its rules look at names: what is called a footer is none of the content to it."""
    body = f"<div class='footer'><p>{SENTENCES * 5}</p><p>{SENTENCES * 4}</p></div>"
    extracted = read(Record(page(body), "html", "x"))
    assert extracted is not None
    assert extracted.extractor in ("trafilatura", "justext")
    assert extracted.text.count(SENTENCES.strip()) == 9
    assert "Section number" not in extracted.text


@pytest.mark.parametrize(
    "broken", ["", "\0", "\ud800", "<", "<!--", "<html>" * 50, "<?xml version='1.0' encoding='x'?>a", "&#0;&#xd800;"]
)
def test_every_extractor_takes_any_text_for_a_page(broken: str) -> None:
    written = broken.encode("utf-8", "replace").decode()
    for extractor in (html._trafilatura, html._justext):
        assert isinstance(extractor(written), str)
    read(Record(broken, "html", "x"))


def test_second_opinions_win_a_few_pages_of_a_real_crawl() -> None:
    path = Path(os.environ.get("GEMCUTTER_CORPUS", "no-corpus")) / "html" / "pages-00001.warc.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    (whole,) = formats.slices(path, "f")
    pages = itertools.islice(formats.records(whole, "text"), 150)
    won = Counter(extracted.extractor for page in pages if (extracted := read(page)))
    assert won["resiliparse"] > 130
    assert 1 <= won["trafilatura"] + won["justext"] <= 15


def test_binary_content_is_unreadable() -> None:
    with pytest.raises(UnreadableError):
        decode(b"\x7fELF\0\0\0\1")


def test_docstrings_come_in_source_order() -> None:
    source = '''"""Module."""
def outer():
    """Outer."""
    if True:
        def inner():
            """Inner."""
class A:
    """Class.

        Indented.
    """
    async def method(self):
        r"""Raw \\d."""
x = """not a docstring"""
'''
    assert docstrings(source) == "Module.\n\nOuter.\n\nInner.\n\nClass.\n\nIndented.\n\nRaw \\d."


def test_deeply_nested_python_keeps_its_docstrings() -> None:
    branches = "".join(f'elif x == {n}:\n    def f():\n        """Branch {n}."""\n' for n in range(1200))
    assert docstrings(f'"""Module."""\nif x:\n    pass\n{branches}').split("\n\n") == [
        "Module.",
        *(f"Branch {n}." for n in range(1200)),
    ]


def test_content_that_decodes_to_ascii_alone_is_decoded_by_no_odd_codec() -> None:
    """Of pure ASCII, punycode makes something else, in a time that grows with the square of the length."""
    assert decode(b"a plain text-4ca0", "text", "punycode") == "a plain text-4ca0"


def test_python_without_docstrings_is_no_document() -> None:
    assert extract(Record(b"x = 1\n", "docstrings", "x")) is None
    assert extract(Record(b'x = """text"""\n', "docstrings", "x")) is None


def test_invalid_python_is_unreadable() -> None:
    with pytest.raises(UnreadableError):
        extract(Record(b'"""Doc."""\ndef (:\n', "docstrings", "x"))


def test_long_description_comes_from_the_body_or_the_header() -> None:
    assert long_description("Name: a\nVersion: 1\n\nThe body.\n") == "The body.\n"
    folded = "Name: a\nDescription: First line.\n        Second line.\nLicense: MIT\n"
    assert long_description(folded) == "First line.\nSecond line."
    assert long_description("Name: a\n") == ""

"""Content becomes the text its author wrote: decoded, repaired and nothing more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.document import Record
from data_pipeline.extract import UnreadableError, decode, docstrings, extract, long_description, repair


def test_mojibake_is_repaired() -> None:
    assert repair("Le cafÃ© dâ€™Ã©tÃ© est fermÃ©.") == "Le café d’été est fermé."


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
        ("Grüße aus Köln".encode(), "no-such-charset"),
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

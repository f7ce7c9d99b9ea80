"""Words are those of spaCy's English where they can be, equal words have equal hashes, and nothing is lost between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.batched import batched
from data_pipeline.signals.characters import BLANK, characters
from data_pipeline.signals.tokens import ALPHABETIC, IDEOGRAPHIC, SPOKEN, Tokens

compiled = settings(deadline=None)  # the first example waits for the compiler
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.text("a.-'1 \n(,:/éЖ水ก็#+%"), max_size=5)


def words_of(text: str) -> list[str]:
    tokens = Tokens.of([text])
    return [text[first:stop] for first, stop in zip(tokens.starts_W, tokens.ends_W, strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The mill, by the river.", "The| mill| ,| by| the| river| ."),
        ("a well-known mill (and wheel)", "a| well| -| known| mill| (| and| wheel| )"),
        ('"Come!" he said...', '"| Come| !| "| he| said| ...'),
        ("either/or key=value 12:30 foo::bar", "either| /| or| key| =| value| 12:30| foo::bar"),
        ("1,000 and a,b and end.Next", "1,000| and| a| ,| b| and| end| .| Next"),
        ("don't l'eau the mill's 'hello'", "don| 't| l| 'eau| the| mill| 's| '| hello| '"),
        ("John D. Miller in the U.S. at 3.14 p.m.", "John| D.| Miller| in| the| U.S.| at| 3.14| p.m| ."),
        ("NATO. n. and 5.", "NATO| .| n.| and| 5| ."),
        ("10% of $5 or 5€ and 3+", "10| %| of| $| 5| or| 5| €| and| 3| +"),
        ("http://example.org/a?b=1, www.example.org/a", "http://example.org/a?b=1| ,| www.example.org/a"),
        ("mill-wheel@example.org, a_b C++ -rf foo(bar)", "mill-wheel@example.org| ,| a_b| C++| -rf| foo(bar| )"),
        ("===--- *** 3-4 1--2 a--b", "=| =| =| ---| *| *| *| 3| -| 4| 1| -| -2| a| --| b"),
        ("wait...what …so … ☺yes", "wait| ...| what| …| so| …| ☺| yes"),
        ("水車 は古い。mill水", "水| 車| は| 古| い| 。| mill| 水"),
        ("กี่ก็", "กี่| ก็"),
        ("می\u200cخواهم so\u00adft", "می\u200cخواهم| so\u00adft"),
        ("a\u200bb \ufeff", "a| b"),
    ],
)
def test_words(text: str, words: str) -> None:
    assert words_of(text) == words.split("| ")


@compiled
@given(TEXTS)
def test_words_cover_all_but_blanks_in_order(texts: list[str]) -> None:
    tokens, whole = Tokens.of(texts), "".join(texts)
    kinds = characters().kinds
    inside = np.zeros(len(whole), np.int64)
    for d in range(len(texts)):
        previous = tokens.texts_D1[d]
        for w in range(tokens.words_D1[d], tokens.words_D1[d + 1]):
            assert previous <= tokens.starts_W[w] < tokens.ends_W[w] <= tokens.texts_D1[d + 1]
            previous = tokens.ends_W[w]
            inside[tokens.starts_W[w] : tokens.ends_W[w]] += 1
    for character, covered in zip(whole, inside, strict=True):
        assert covered == (kinds[ord(character)] != BLANK)


@compiled
@given(TEXTS)
def test_hashes_are_equal_for_equal_words_and_lines(texts: list[str]) -> None:
    tokens, whole = Tokens.of(texts), "".join(texts)
    for starts, ends, hashes in (
        (tokens.starts_W, tokens.ends_W, tokens.hashes_W),
        (tokens.starts_L, tokens.ends_L, tokens.hashes_L),
    ):
        found = {(whole[a:b], int(h)) for a, b, h in zip(starts, ends, hashes, strict=True)}
        assert len({text for text, _ in found}) == len({hash_ for _, hash_ in found}) == len(found)


@compiled
@given(TEXTS)
def test_lines_are_those_between_line_feeds(texts: list[str]) -> None:
    tokens, whole = Tokens.of(texts), "".join(texts)
    for d, text in enumerate(texts):
        of_document = slice(tokens.lines_D1[d], tokens.lines_D1[d + 1])
        starts, ends = tokens.starts_L[of_document], tokens.ends_L[of_document]
        assert [whole[first:stop] for first, stop in zip(starts, ends, strict=True)] == text.split("\n")


@pytest.mark.parametrize(
    ("word", "other"),
    [("Mühle", "MUHLE"), ("Éléphant", "elephant"), ("ＡＢＣ", "abc"), ("e.g", "EG"), ("so\u00adft", "soft")],
)
def test_folded_hashes_know_no_case_width_or_accents(word: str, other: str) -> None:
    tokens = Tokens.of([word, other])
    assert tokens.folded_W[0] == tokens.folded_W[1]
    assert tokens.hashes_W[0] != tokens.hashes_W[1]


def test_marks_of_every_plane_vanish() -> None:
    """Variants of ideographs are told by marks of the last plane but two."""
    plain, marked = (Tokens.of([text]) for text in ("葛a", "葛\U000e0100a\U000e01ef"))
    assert characters().folded[[0x301, 0xE0100, 0xE01EF, 0x200D]].tolist() == [0] * 4
    assert marked.folded_W.tolist() == plain.folded_W.tolist()


@compiled
@given(TEXTS, st.integers(1, 9))
def test_batches_hold_every_text_in_order(texts: list[str], characters_: int) -> None:
    found = list(batched(texts, len, characters_))
    assert [text for batch in found for text in batch] == texts
    assert all(found)
    assert all(sum(map(len, batch)) >= characters_ > sum(map(len, batch[:-1])) for batch in found[:-1])


@compiled
@given(TEXTS)
def test_lines_without_blanks_are_stripped(texts: list[str]) -> None:
    tokens, at = Tokens.of(texts), 0
    together = "".join(texts)
    for text in texts:
        for line in text.split("\n"):
            assert together[tokens.firsts_L[at] : tokens.stops_L[at]] == line.strip()
            assert line.strip() or tokens.firsts_L[at] == tokens.stops_L[at] == tokens.ends_L[at]
            at += 1
    assert at == tokens.firsts_L.size


def test_kinds_of_words() -> None:
    tokens = Tokens.of(["mill 42 ... 水"])
    assert tokens.kinds_W.tolist() == [ALPHABETIC | SPOKEN, SPOKEN, 0, ALPHABETIC | SPOKEN | IDEOGRAPHIC]

"""Harmful content is told by lists and scores, and the category that must not be stored leaves no trace.

The words here are invented, or neutral ones that stand in for others; the packaged lists are only asked, never shown.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from conf.exits import DataError
from data_pipeline.harm import blocks, prohibited, words
from data_pipeline.harm.blocks import BlockList
from data_pipeline.harm.prohibited import Lexicon, is_prohibited
from data_pipeline.harm.toxicity import passages, toxic_share, without_toxic
from data_pipeline.harm.words import WordList

LISTED = ("grump", "sour plum", "b!tter", "x-rayed", "ümlaut")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A grump, GRUMP and a Grump.", 1),
        ("grumpy and ungrump, grump_1 and grump2", 0),
        ("sour plums", 0),
        ("one Sour Plum!", 1),
        ("sour  plum, plum sour", 0),
        ("(b!tter) x-rayed ÜMLAUT", 3),
        ("", 0),
    ],
)
def test_words_count_where_no_letter_touches_them(text: str, count: int) -> None:
    assert WordList(LISTED, "en").count(text) == count


def test_words_count_anywhere_in_scripts_without_blanks() -> None:
    listed = WordList(("果物", "sm", "りんご"), "ja")
    assert listed.count("大きな果物屋") == 1
    assert listed.count("small sm") == 0  # allowed by C4
    assert WordList(("性", "果物"), "zh").count("性能和果物") == 1


def test_words_are_matched_as_c4_does_it() -> None:
    """The expression of C4, on texts made of the entries, of their pieces and of what may touch them."""
    rng = random.Random(7)
    expression = re.compile(rf"(?:\W|^)({'|'.join(map(re.escape, LISTED))})(?:\W|$)", re.IGNORECASE)
    listed, both = WordList(LISTED, "en"), {True: 0, False: 0}
    pieces = [*LISTED, "sour", "plum", "grum", "p", " ", " ", ".", "_", "1", "-", "\n", "GRUMP", "é"]
    for _ in range(4000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 6)))
        found = expression.search(text) is not None
        assert (listed.count(text) > 0) == found, text
        both[found] += 1
    assert min(both.values()) > 500


def test_every_packaged_list_is_there_with_its_licence() -> None:
    lists = words.lists()
    assert len(lists) == 28
    assert sum(map(len, lists.values())) == 2666
    for language, listed in lists.items():
        packaged = words.packaged(language)
        assert packaged is not None
        assert packaged.count(f"x {listed[0]} x") >= 1
    assert words.packaged("xx") is None
    notice = Path(words.__file__).with_name("naughty-words.txt").read_text()
    assert "Attribution 4.0" in notice


def test_an_empty_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="empty entry"):
        WordList(("a", " "), "en")


# --- block lists -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hashed", [False, True])
def test_blocked_domains_pages_and_texts_are_told(hashed: bool, tmp_path: Path) -> None:
    text = "The   words\nof a text"
    entries = ["bad.example", "https://www.good.example:443/page/?q=1#part", blocks.digest_of_text(text).hex()]
    if hashed:
        entries[:2] = [
            blocks.digest_of_domain(entries[0]).hex(), blocks.digest_of_url(entries[1]).hex().upper()
        ]  # fmt: skip
    (tmp_path / "list.txt").write_text("# mine\n\n" + "\n".join(entries) + "\n")
    listed = BlockList.read(tmp_path / "list.txt")
    assert len(listed) == 3
    assert listed.reason("http://sub.bad.example/x", "") == "blocked_domain"
    assert listed.reason("http://www.bad.example", "") == "blocked_domain"
    assert listed.reason("http://notbad.example/bad.example", "") == ""
    assert listed.reason("http://good.example/page?q=1", "") == "blocked_url"
    assert listed.reason("http://good.example/page?q=2", "") == ""
    assert listed.reason("http://good.example/", "") == ""
    assert listed.reason("", "The words of a  text") == "blocked_text"
    assert listed.reason("not a url [", "other") == ""
    assert BlockList(()).reason("http://bad.example", text) == ""


def test_a_page_that_is_blocked_does_not_block_its_domain() -> None:
    listed = BlockList(["https://good.example/"])
    assert listed.reason("http://good.example", "") == "blocked_url"
    assert listed.reason("http://good.example/x", "") == ""


def test_messages_about_lists_quote_no_entry(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("good.example\nunspeakable words\n")
    with pytest.raises(DataError, match=r"list\.txt:2 ") as error:
        BlockList.read(tmp_path / "list.txt")
    assert "unspeakable" not in str(error.value)
    assert error.value.__cause__ is None
    with pytest.raises(DataError, match="cannot be read"):
        BlockList.read(tmp_path / "missing.txt")


# --- toxicity --------------------------------------------------------------------------------------------------------


def test_passages_are_lines_and_sentences_of_long_ones() -> None:
    long = "One sentence stands here. " * 100
    text = f"first\n\n  \n{long}\nlast"
    found = passages(text)
    assert "".join(text[one.start : one.end] for one in found) == f"first{long}last"
    assert all(one.end - one.start <= 1000 for one in found)
    assert all(text[one.start : one.end].endswith(("first", ". ", "last")) for one in found)
    assert passages("") == []
    assert len(passages("x" * 2500)) == 3


def test_toxic_passages_are_measured_and_taken_out() -> None:
    text = "good line\nbad line\nfine\nbad end"
    found = passages(text)
    scores = [0.1, 0.9, 0.4, 0.41]
    assert toxic_share(found, scores) == pytest.approx((8 + 7) / (9 + 8 + 4 + 7))
    assert without_toxic(text, found, scores) == "good line\nfine\n"
    assert without_toxic(text, found, [0.0] * 4) == text
    assert toxic_share([], []) == 0.0


# --- what must not be stored -----------------------------------------------------------------------------------------

# Neutral words in the places of others.
MINORS, SEXUAL = ("sapling", "young tree", "苗木"), ("axe", "chain saw", "斧")


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("The sapling and the axe.", True),
        ("The AXE, they say, fell a SAPLING", True),
        ("a chain\nsaw near the young tree", True),
        ("axe 1 2 3 4 sapling", True),
        ("axe 1 2 3 4 5 sapling", False),
        ("sapling 1 2 3 4 axe", True),
        ("sapling 1 2 3 4 5 axe", False),
        ("axe " + "x " * 20 + "sapling " + "x " * 20 + "axe", False),
        ("saplings and axes", False),
        ("the sapling grows", False),
        ("the axe lies there", False),
        ("chain of a saw, sapling", False),
        ("用斧砍苗木", True),
    ],
)
def test_the_two_lexicons_meet_within_some_words(text: str, held: bool, hashed: bool) -> None:
    minors, sexual = ([prohibited.digest(term) for term in terms] if hashed else terms for terms in (MINORS, SEXUAL))
    assert Lexicon(minors, sexual, near=4).holds(text) is held


@pytest.mark.parametrize("before", ["x " * 6, "沐" * 11, "x" * 13 + " "])
def test_long_texts_are_gone_through_in_pieces_that_lose_nothing(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Nor do they find what a cut would make: `stepsapling` is no sapling."""
    for name, characters in (("_BLOCK", 64), ("_OVERLAP", 40), ("_LONGEST_WORD", 16)):
        monkeypatch.setattr(prohibited, name, characters)
    lexicon = Lexicon(MINORS, SEXUAL, near=4)
    for shift in range(80):
        assert lexicon.holds(before * 9 + " " + "y " * shift + "axe x x sapling " + before * 9)
        assert not lexicon.holds(before * 9 + " " + "y " * shift + "axe x x stepsapling x axe " + before * 9)


def test_a_document_is_prohibited_by_lexicon_or_list() -> None:
    lexicon, listed = Lexicon(MINORS, SEXUAL), BlockList(["bad.example"])
    assert is_prohibited("", "axe and sapling", lexicon, BlockList(()))
    assert is_prohibited("https://bad.example/x", "harmless", lexicon, listed)
    assert not is_prohibited("https://good.example/x", "harmless", lexicon, listed)
    assert not is_prohibited("", "axe and sapling", None, listed)


def test_a_lexicon_is_read_from_a_file_and_never_quoted(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text(f"# terms\nminor sapling\nsexual {prohibited.digest('axe')}\n")
    assert Lexicon.read(path).holds("axe sapling")
    path.write_text("minor sapling\nunspeakable thing\n")
    with pytest.raises(DataError, match=r"lexicon\.txt:2 ") as error:
        Lexicon.read(path)
    assert "unspeakable" not in str(error.value)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The children of the village play by the river while their parents mill the grain."),
        ("de", "Kinder unter zwölf Jahren zahlen die Hälfte."),
        ("fr", "Les enfants jouent dans le jardin."),
        ("es", "El menor de los números primos es dos."),
    ],
)
def test_the_packaged_lexicon_leaves_ordinary_texts_about_children_alone(language: str, text: str) -> None:
    lexicon = Lexicon.packaged(language)
    assert lexicon is not None
    assert not lexicon.holds(text)


@pytest.mark.parametrize("language", prohibited.MINORS)
def test_the_packaged_lexicon_knows_every_term_of_both_lists(language: str) -> None:
    lexicon = Lexicon.packaged(language)
    assert lexicon is not None
    terms = prohibited.MINORS[language].split(", ")
    allowed = words.ALLOWED.get(language, ())
    listed = next(word for word in words.lists()[language] if word.isalpha() and word not in allowed)
    assert all(lexicon.holds(f"{term} {listed}") for term in terms)
    assert Lexicon.packaged("xx") is None

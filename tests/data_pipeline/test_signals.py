"""Signals are what their definitions say, whatever else is in a batch, and rules that make no sense do not apply.

Beside each column stands the plainest Python that counts the same; for words it takes ours, as `tokens` promises them.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import signals
from data_pipeline.signals import c4, refinedweb
from data_pipeline.signals.characters import TERMINAL, characters
from data_pipeline.signals.tokens import Tokens

compiled = settings(deadline=None)  # the first example waits for the compiler

GOOD = "The old mill stands by the river, and people of the village come to have their grain ground. " * 5

# Words that rules look for, marks that they turn on, and letters of other scripts and cases.
_PARTS = st.sampled_from(
    [
        "the", "and", "of", "The", "mill", "river", "wheel", "JavaScript", "lorem ipsum", "Lorem", "privacy policy",
        "use cookies", "items in cart", "Read more...", "Sign-in", "sign-in now", "3 likes", "1,234k views", "[1]",
        "[]", "[edit]", "[citation needed]", "[[2]", "{", "}", "#", "...", "…", ". . .", "•", "-", "*", "●", ".", "?",
        "!", '"', "'", "don't", "e.g.", "Mr.", "U.S.", "3.14", "x" * 1001, "LOUD", "42", "²", "Mühle",
        "古い水車小屋が", "。", "ก็", "и", "İ", "\u00a0", "\u2003", "\t", "\x1c", "\u200b", "\u2028", " ", "  ", "\n",
        "\n\n", "\n \n", "\n\n\n", "x" * 1000, "......",
    ]
)  # fmt: skip
_MENUS = st.sampled_from(["items in cart", "Read more...", "Sign-in", "12 likes", "mill", " ", " ", "\n", "."])


def _joined(parts: st.SearchStrategy[str], between: str, most: int) -> st.SearchStrategy[str]:
    """Parts that are drawn, three times over or not: lists that are drawn are short."""
    drawn = st.tuples(st.lists(parts, max_size=most), st.sampled_from([1, 3])).map(lambda pair: pair[0] * pair[1])
    return drawn.map(lambda chosen: between.join(chosen).encode("utf-8", "ignore").decode().strip())


# Whatever the rules look for; the same few words and lines again and again; phrases of menus side by side.
TEXTS = (
    _joined(_PARTS | st.text(max_size=5), " ", 30)
    | _joined(st.sampled_from(["mill", "oak", "the", "of", "."]), " ", 30)
    | _joined(st.sampled_from(["a", "b", " ", "\n", "\n\n"]), "", 30)
    | _joined(_MENUS, "", 12)
)


def measured(texts: list[str], languages: list[str] | None = None) -> dict[str, np.ndarray]:
    return signals.measure(Tokens.of(texts), languages or ["en"] * len(texts))


def column(text: str, name: str, language: str = "en") -> float:
    return measured([text], [language])[name][0].item()


def words_of(text: str) -> list[str]:
    tokens = Tokens.of([text])
    return [text[a:b] for a, b in zip(tokens.starts_W, tokens.ends_W, strict=True)]


def is_spoken(word: str) -> bool:
    return any(characters().kinds[ord(letter)] in (1, 3) for letter in word)


# ---- a batch is its documents ----------------------------------------------------------------------------------------


@compiled
@given(st.lists(st.tuples(TEXTS, st.sampled_from(["en", "de", "ja", "th", "und"])), max_size=6))
def test_a_batch_gives_what_each_document_gives_alone(documents: list[tuple[str, str]]) -> None:
    texts, languages = [text for text, _ in documents], [language for _, language in documents]
    together = measured(texts, languages)
    for d, (text, language) in enumerate(documents):
        for name, values in measured([text], [language]).items():
            np.testing.assert_array_equal(together[name][d], values[0], err_msg=name)


def test_the_table_names_every_column_in_its_type() -> None:
    columns = measured([GOOD, "", "古い水車小屋"], ["en", "en", "ja"])
    assert list(columns) == list(signals.COLUMNS)
    for name, values in columns.items():
        assert (values.dtype.name, values.shape) == (signals.COLUMNS[name].dtype, (3,)), name
    assert all(described.meaning for described in signals.COLUMNS.values())
    assert all(not values.size for values in measured([]).values())


def test_time_grows_with_the_characters() -> None:
    """Sixteen times the text takes sixteen times as long, be it one document or one that repeats itself. It may take
    three times that, as tables outgrow caches and a machine does other things; in steps that grow with the square of
    the words it would take sixteen times that."""
    rng = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, rng.integers(97, 123, length))) for length in rng.integers(1, 12, 5000)]

    def text(words: int, distinct: int) -> str:
        drawn = rng.integers(0, distinct, words)
        return " ".join(vocabulary[word] + (".\n" if n % 17 == 0 else "") for n, word in enumerate(drawn))

    def seconds(of: str) -> float:
        best = 1e9
        for _ in range(4):
            begin = time.perf_counter()
            measured([of])
            best = min(best, time.perf_counter() - begin)
        return best

    for distinct in (5000, 1):
        short, long = text(20_000, distinct), text(320_000, distinct)
        assert seconds(long) < 3 * 16 * seconds(short)
    signs = ". " * 100_000 + "(" * 100_000 + "[1" * 50_000 + "." * 100_000 + "a." * 50_000 + "-" * 100_000 + "a"
    assert seconds(signs) < 3 * 16 * seconds(signs[::16])


# ---- Gopher ----------------------------------------------------------------------------------------------------------


@compiled
@given(TEXTS)
def test_gopher_counts_words_symbols_and_lines(text: str) -> None:
    found = measured([text])
    words = words_of(text)
    spoken = [word for word in words if is_spoken(word)]
    lines = text.split("\n")
    expected = {
        "words": len(spoken),
        "mean_word_length": sum(map(len, spoken)) / max(1, len(spoken)),
        "hashes": text.count("#") / max(1, len(words)),
        "ellipses": (text.count("...") + text.count("…")) / max(1, len(words)),
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / max(1, len(words)),
        "stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & set(words)),
        "bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
    }
    for name, value in expected.items():
        assert found[name][0] == np.float32(value), name


def test_stop_words_are_counted_where_a_language_has_a_list() -> None:
    german = "Die alte Mühle steht am Fluss, und die Leute aus dem Dorf lassen dort ihr Korn mahlen."
    assert column(german, "stop_words", "de") == -1
    lists = {"de": ("die", "und", "am", "der"), "en": ("the",)}
    both = signals.measure(Tokens.of([german, "the mill", german]), ["de", "en", "fr"], lists)
    assert both["stop_words"].tolist() == [3, 1, -1]


def test_stop_words_that_no_text_could_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['of the'\] are not single words"):
        signals.measure(Tokens.of(["x"]), ["en"], {"en": ("the", "of the")})
    with pytest.raises(ValueError, match="at most 64"):
        signals.measure(Tokens.of(["x"]), ["en"], {"en": tuple(f"w{n}" for n in range(65))})


def test_scripts_without_blanks_are_not_judged_by_words() -> None:
    japanese = "古い水車小屋が川のほとりに立っていて、村の人々は穀物を挽いてもらうためにそこへ来ます。" * 5
    found = measured([japanese], ["ja"])
    assert np.isnan([found["mean_word_length"][0], found["alphabetic_words"][0]]).all()
    assert found["stop_words"][0] == -1
    assert 70 <= found["words"][0] <= 120
    thai = "ภาษาไทยไม่มีช่องว่างระหว่างคำ"
    assert column(thai, "words", "th") == sum(unicodedata.category(letter) != "Mn" for letter in thai) // 2


def test_runs_of_letters_in_scripts_without_blanks_are_twice_as_long() -> None:
    """Five words are taken for ten letters: repeated phrases of five letters are common in any Chinese text."""
    phrases = ["".join(map(chr, range(0x4E00 + 40 * n, 0x4E00 + 40 * n + 20))) for n in range(4)]
    five = "".join(phrase + "水車小屋前" for phrase in phrases)
    ten = "".join(phrase + "水車小屋前古老河邊村" for phrase in phrases)
    assert column(five, "duplicate_5_grams", "zh") == 0
    assert column(ten, "duplicate_5_grams", "zh") == np.float32(30 / 120)


# ---- repetition ------------------------------------------------------------------------------------------------------


def duplicates(elements: Iterable[str]) -> tuple[int, int]:
    seen: set[str] = set()
    number = size = 0
    for element in elements:
        if element in seen:
            number, size = number + 1, size + len(element)
        seen.add(element)
    return number, size


def greedy(words: list[str], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    size = at = 0
    while at <= len(words) - n:
        run = tuple(words[at : at + n])
        if run in seen:
            size, at = size + sum(map(len, run)), at + n
        else:
            seen.add(run)
            at += 1
    return size


@compiled
@given(TEXTS)
def test_repetition_counts_lines_paragraphs_and_runs_of_words(text: str) -> None:
    found, size = measured([text]), max(1, len(text))
    lines = [line for line in re.split("\n+", text) if line]
    paragraphs = [paragraph for paragraph in re.split("\n{2,}", text) if paragraph]
    expected = {}
    for name, elements in (("line", lines), ("paragraph", paragraphs)):
        number, length = duplicates(elements)
        expected[f"duplicate_{name}s"] = number / max(1, len(elements))
        expected[f"duplicate_{name}_characters"] = length / size
    words = words_of(text)
    for n in (2, 3, 4):
        runs = Counter(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
        top, times = runs.most_common(1)[0] if runs else ("", 0)
        expected[f"top_{n}_gram"] = len(top) * times / size
    expected |= {f"duplicate_{n}_grams": greedy(words, n) / size for n in range(5, 11)}
    for name, value in expected.items():
        assert found[name][0] == np.float32(value), name


# ---- FineWeb ---------------------------------------------------------------------------------------------------------


@compiled
@given(TEXTS)
def test_fineweb_counts_lines_that_are_not_blank(text: str) -> None:
    found = measured([text])
    lines = [line for line in text.split("\n") if line.strip()]
    expected = {
        "line_punctuation": sum(_ends_in_punctuation(line) for line in lines) / len(lines) if lines else np.nan,
        "short_lines": sum(len(line) <= 30 for line in lines) / len(lines) if lines else np.nan,
        "repeated_line_characters": duplicates(lines)[1] / max(1, len(text.replace("\n", ""))),
        "line_feeds": text.count("\n") / max(1, len(words_of(text))),
    }
    for name, value in expected.items():
        np.testing.assert_equal(found[name][0], np.float32(value), err_msg=name)


def _ends_in_punctuation(line: str) -> bool:
    return bool(characters().properties[ord(line[-1])] & TERMINAL)


# ---- C4 --------------------------------------------------------------------------------------------------------------

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")


def c4_lines(text: str, terminal_punctuation: bool) -> tuple[list[str], dict[str, int]]:
    """The lines that stay, and what is counted on the way."""
    kept, counts = [], dict.fromkeys(("long_word_lines", "short_lines", "javascript_lines", "policy_lines"), 0)
    counts |= dict.fromkeys(("lorem_ipsum", "curly_brackets", "citations"), 0)
    for whole in text.split("\n"):
        line = whole.strip()
        words, cut = line.split(), CITATION.sub("", line)
        low = _lower(cut)
        if any(len(word) > 1000 for word in words):
            counts["long_word_lines"] += 1
        elif terminal_punctuation and (not cut.endswith((".", "?", "!", '"', "'")) or cut.endswith("...")):
            pass
        elif len(words) < 3:
            counts["short_lines"] += bool(words)
        else:
            counts["lorem_ipsum"] += "lorem ipsum" in low
            if "javascript" in low:
                counts["javascript_lines"] += 1
                continue
            counts["curly_brackets"] += "{" in line
            if any(phrase in low for phrase in POLICIES):
                counts["policy_lines"] += 1
                continue
            counts["citations"] += len(CITATION.findall(line))
            kept.append(cut)
    return kept, counts


def _lower(text: str) -> str:
    """Latin letters without accents; the sign of kelvin, which Python lowers to k, stays."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


@compiled
@given(TEXTS, st.booleans())
def test_c4_edits_lines_and_counts_what_it_took(text: str, terminal_punctuation: bool) -> None:
    kept, counts = c4_lines(text, terminal_punctuation)
    assert c4.cleaned(text, terminal_punctuation=terminal_punctuation) == "\n".join(kept).strip()
    found = measured([text])
    for name, value in counts.items():
        if not terminal_punctuation:
            assert found[f"c4_{name}"][0] == value, name
        elif name in ("lorem_ipsum", "curly_brackets"):
            assert found[f"c4_ended_{name}"][0] == value, name
    assert found["c4_paragraphs"][0] == sum(len(line) >= 200 for line in text.split("\n"))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("The mill is old. It stands by the river. People come.", 3),
        ("Is it old? Yes! It is.", 3),
        ("The mill is old... and it stands.", 1),
        ("Mr. Miller and Dr. Brook met at 3.14 p.m. in the U.S. near the mill.", 1),
        ("He said (it was late). She left.", 2),
        ('"The mill is old." She left.', 2),
        ("See example.org or file.txt? Yes.", 2),
        ("What?! Really?! Indeed.", 3),
        ("All of it ended.[1] Then it began.[2]", 2),
        ("水車は古い。川のほとりに立つ。 村の人が来る。", 3),
    ],
)
def test_sentences_end_at_marks_that_stand_alone(text: str, sentences: int) -> None:
    assert column(text, "c4_sentences", "ja" if text[0] == "水" else "en") == sentences


# ---- RefinedWeb ------------------------------------------------------------------------------------------------------

COUNTER = re.compile(
    r"^\W*\d(?:,|\.|\d)*(?:k|m|b)?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|"
    r"downloads|views|followers)\W*$"
)


def refinedweb_lines(text: str) -> str:
    """The edits one after the other, as DCLM chains them; dots of `read more...` as dots."""
    lines = text.split("\n")
    lines = [line for line in lines if not line or sum(map(str.isupper, line)) / len(line) <= 0.5]
    lines = [line for line in lines if not line or sum(map(str.isdigit, line)) / len(line) <= 0.999999]
    lines = [line for line in lines if not COUNTER.search(line.lower())]
    lines = [line for line in lines if not line or len(line.split()) >= 2]
    for pattern in (r"\s?items in cart", r"\s?read more\.\.\.$", r"^sign-in\s?"):
        edited = []
        for line in lines:
            cut = re.sub(pattern, "", line, flags=re.IGNORECASE) if len(line.split()) <= 10 else line
            if not line or cut.strip():
                edited.append(cut)
        lines = edited
    return "\n".join(lines).strip()


@compiled
@given(TEXTS)
def test_refinedweb_edits_lines(text: str) -> None:
    assert refinedweb.cleaned(text) == refinedweb_lines(text)


@compiled
@given(TEXTS)
def test_refinedweb_counts_what_pages_are_judged_by(text: str) -> None:
    found, words = measured([text]), text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    symbols = sum(map(text.count, ("#", "...", ". . .", "…")))
    expected = {
        "mean_word_length": sum(map(len, words)) / len(words) if words else np.nan,
        "symbols": symbols / len(words) if words else np.nan,
        "other_words": 1 - sum(any(map(str.isalpha, word)) for word in words) / len(words) if words else np.nan,
        "bullet_lines": sum(line.startswith(("●", "•", "*", "-")) for line in lines) / max(1, len(lines)),
        "ellipsis_lines": sum(line.endswith(("...", ". . .", "…")) for line in lines) / max(1, len(lines)),
        "stop_words": sum(_lower(w) in ("the", "be", "to", "of", "and", "that", "have", "with") for w in words),
    }
    for name, value in expected.items():
        np.testing.assert_equal(found[f"refinedweb_{name}"][0], np.float32(value), err_msg=name)


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("3 items in cart", "3"),
        ("Items in cart", ""),
        ("the oak read more...", "the oak"),
        ("Read more... items in cart", ""),
        ("items in cart sign-in now", " sign-in now"),  # no longer at the beginning
        ("Sign-in to read more...", "to"),
        ("sign-in sign-in", "sign-in"),
        (
            "one two three four five six seven eight items in cart",
            "one two three four five six seven eight items in cart",
        ),
        ("two three four five six seven eight items in cart", "two three four five six seven eight"),
    ],
)
def test_refinedweb_cuts_phrases_of_menus_out_of_short_lines(line: str, left: str) -> None:
    assert refinedweb.cleaned(f"The oak.\n{line}\nThe mill.") == "\n".join(
        filter(None, ["The oak.", left, "The mill."])
    )
    assert refinedweb_lines(f"The oak.\n{line}\nThe mill.") == refinedweb.cleaned(f"The oak.\n{line}\nThe mill.")


def test_refinedweb_counts_the_words_that_its_edits_take() -> None:
    text = "The mill stands by the river.\nALL OF THIS\n12\n3 likes\nWelcome, 2 items in cart\nalone"
    assert refinedweb.cleaned(text) == "The mill stands by the river.\nWelcome, 2"
    # ALL OF THIS, 12, 3 likes, items in cart, alone: 10 of 18 words
    assert column(text, "refinedweb_removed_words") == np.float32(10 / 18)
    assert column(GOOD, "refinedweb_removed_words") == 0


def test_edits_leave_the_next_document_alone() -> None:
    """Lines that go take their line feed with them, but not the first letter of what comes next in the batch."""
    texts = ["alone", "The mill stands by the river.", "javascript", "The mill stands."]
    for name in ("refinedweb_removed_words", "c4_sentences"):
        together = measured(texts)[name].tolist()
        assert together == [column(text, name) for text in texts]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=" \n.ab[1]#…-'\u00e9\u4e00", max_size=60), st.sampled_from(["en", "zh"]))
def test_any_text_can_be_measured_and_edited(text: str, language: str) -> None:
    unspaced = language in signals.UNSPACED
    edits: list[Callable[..., str]] = [c4.cleaned, refinedweb.cleaned]
    for edit in edits:
        once = edit(text, unspaced=unspaced)
        assert len(once) <= len(text)
    shares = [name for name, kind in signals.COLUMNS.items() if kind.dtype == "float32" and "lines" in name]
    found = measured([text], [language])
    assert all(np.isnan(found[name][0]) or 0 <= found[name][0] <= 1 for name in shares)

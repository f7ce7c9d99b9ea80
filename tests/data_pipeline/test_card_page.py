"""Promises of the page: it tells the truth, needs nothing but itself, and cannot be broken by what it shows."""

from __future__ import annotations

import copy
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from data_pipeline.card.page import SCRUBBED, render
from data_pipeline.card.reasons import REASONS
from data_pipeline.card.style import STYLE
from data_pipeline.card.tally import Tally
from data_pipeline.private.found import KINDS
from tests.data_pipeline import invented_card
from tests.data_pipeline.invented_card import BENCHMARKS, SOURCES, about, row

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202eoverridden\x00\x1b[2J"
HEADINGS = ("h1", "h2", "h3")


class Page(HTMLParser):
    """Checks that tags close in order; collects tags, attributes, rows of tables by caption, and text."""

    VOID = frozenset(("meta", "br", "wbr"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[tuple[str, str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._caption = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in HEADINGS:
            self.headings.append((tag, ""))
        elif tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")
        elif tag == "br":
            self.handle_data("\n")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-2:] == ["caption", "b"]:
            self._caption = data
            self.tables[data] = []
        elif set(self.open) & {"td", "th"}:
            self.tables[self._caption][-1][-1] += data
        if headings := set(self.open) & set(HEADINGS):
            tag, told = self.headings[-1]
            assert headings == {tag}
            self.headings[-1] = (tag, told + data)


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return invented_card.card()


@pytest.fixture(scope="module")
def page(card: dict[str, Any]) -> Page:
    return Page(render(card))


def number(count: int) -> str:
    return f"{count:,}"


def test_it_needs_nothing_but_itself(page: Page, card: dict[str, Any]) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert "src" not in dict(page.attributes)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name == "href"]
    places = [value for name, value in page.attributes if name == "id"]
    assert links
    assert {link.removeprefix("#") for link in links} <= set(places)
    assert len(places) == len(set(places))
    assert not re.search(r"url\(|@import|https?://", render(card))


def test_the_same_card_is_the_same_page(card: dict[str, Any]) -> None:
    before = copy.deepcopy(card)
    assert render(card) == render(copy.deepcopy(card))
    assert card == before
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", render(card))  # no date


def test_it_shows_the_counts(page: Page, card: dict[str, Any]) -> None:
    counts = card["counts"]
    came, kept = number(counts["documents_in"]), number(counts["documents_kept"])
    assert f"{kept} of {came} documents were kept" in page.text
    assert card["lineage"] in page.text
    stages = page.tables["Documents by stage"]
    assert (stages[1][0], stages[1][-1]) == ("Came in", came)
    assert (stages[-1][0], stages[-1][-1], stages[-2][-1]) == ("Kept", kept, kept)
    decisions = [cells[:2] for cells in page.tables["Documents by decision"] if len(cells) > 1][1:]
    shown = [(cells[0].split("\n")[1].split(";")[0], cells[1]) for cells in decisions]
    assert shown == [(step["reason"], number(step["documents"])) for step in card["funnel"]]
    for label, one in counts["sources"].items():
        cells = next(cells for cells in page.tables["Documents and text by source"] if cells[0] == label)
        assert cells[1:3] == [number(one["documents_in"]), number(one["documents_kept"])]
    for language, one in card["languages"].items():
        cells = next(cells for cells in page.tables["Documents and text by language"] if cells[0] == language)
        assert cells[1:3] == [number(one["documents_in"]), number(one["documents_kept"])]
    for licence, one in card["licenses"].items():
        assert [licence, number(one["documents"])] in [cells[:2] for cells in page.tables["Kept documents by licence"]]
    lengths = page.tables["Documents by length"][1:]
    for at, key in ((2, "in"), (3, "kept")):
        told = [int(cells[at].replace(",", "")) for cells in lengths]
        assert [count for count in told if count] == list(card["lengths"][key].values())
    quality = {cells[0]: cells[2] for cells in page.tables["Kept documents by quality"][1:]}
    assert {score: number(count) for score, count in card["quality"].items()}.items() <= quality.items()
    clusters = page.tables["Kept documents by how many they stand for"][1:]
    assert [cells[2] for cells in clusters] == [number(count) for count in card["duplicates"]["clusters"].values()]
    items = {cells[0]: cells[1:3] for cells in page.tables["Items replaced in kept documents"][1:]}
    for kind in KINDS:
        documents = card["scrubbed_documents"][kind]
        assert items[SCRUBBED[kind]] == [number(counts["scrubbed"][kind]), number(documents)]


def test_it_shows_what_was_found_of_benchmarks(page: Page, card: dict[str, Any]) -> None:
    certificate = card["contamination"]
    rows = page.tables[f"Items found in {certificate['documents']:,} documents"][1:]
    assert [cells[0] for cells in rows] == list(BENCHMARKS)
    for cells, one in zip(rows, certificate["benchmarks"].values(), strict=True):
        found, documents = one["contaminated_items"], one["contaminated_documents"]
        assert cells[1:3] == [number(one["items"]), number(found["clusters"])]
        assert cells[3] == f"{100 * found['clusters'] / one['items']:.1f}\N{NO-BREAK SPACE}%"
        assert cells[5:8] == [number(found["answered"]), number(documents["clusters"]), number(documents["runs"])]
    assert certificate["sha256"] in page.text


def test_it_shows_classifiers_limits_and_changes(page: Page, card: dict[str, Any]) -> None:
    measured = page.tables["Measured on documents that were held out of training"][1:]
    for cells, (name, report) in zip(measured, card["classifiers"].items(), strict=True):
        held_out = report["held_out"]
        assert (cells[0], cells[3]) == (name, f"{held_out['accuracy']:.4f}")
        assert cells[5:] == [f"{held_out['auc']:.4f}", f"{held_out['calibration_error']:.4f}"]
    held = {cells[0]: cells[1:] for cells in page.tables["Limits by rule set"] if len(cells) > 1}
    assert held["min_alphabetic_words"] == ["0.8", "0.78 in fr, ar; 0.76 in ru"]
    assert "gopher_alphabetic_words; allowed: at least 0.76 to 0.8 by language" in page.text
    assert "extract_timeout; allowed: at most 10 s" in page.text
    before, now = card["changes"]["documents_kept"]
    assert ["documents", number(before), number(now), f"{now - before:+,}"] in page.tables["In all"]
    assert "curate.language_confidence was 0.65, is 0.5" in page.text
    assert ["curate.extract.seconds", "10.0"] in page.tables["Keys that this text depends on"]


def test_headings_are_in_order_and_tables_have_captions(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(told.strip() for _, told in page.headings)
    assert page.tags.count("table") == page.tags.count("caption") == len(page.tables)  # no two are called the same


def test_what_is_not_there_is_said_in_a_line() -> None:
    tally = Tally()
    tally.add(row("a", "some text"), "", 9, "web")
    page = Page(render(about(tally.card_values())))
    for line in (
        "none were named, so none were kept out", "No benchmarks were named: this text may hold any of them.",
        "No version before this one was named.", "None was trained for this text.", "No rules were asked.",
        "None was found in the kept documents.", "No document has a score of quality.",
    ):  # fmt: skip
        assert line in page.text
    assert "Signals" not in page.text
    assert "Text of 1 source in 1 language: 1 of 1 documents were kept." in page.text


def test_hostile_names_and_texts_are_shown_and_do_nothing(card: dict[str, Any]) -> None:
    tally = Tally()
    long = "x" * 10_000
    for id_ in (HOSTILE, long, "مستند\u202e"):
        tally.add(row(id_, HOSTILE + "\u05d0\u05d1\u05d2", HOSTILE, license=HOSTILE), "", 9, HOSTILE)
    hostile = card | {"name": HOSTILE} | tally.card_values()
    hostile["config"] = {"x": [HOSTILE], "y": {HOSTILE: HOSTILE}, "sources": [{"name": HOSTILE}]}
    hostile["changes"] = {
        "lineage": HOSTILE, "documents_kept": [1, 2], "bytes_kept": [1, 2], "config": [HOSTILE],
        "sources": {HOSTILE: [1, 2]}, "languages": {HOSTILE: [1, 2]}, "dropped": {HOSTILE: [1, 2]},
    }  # fmt: skip
    benchmark = next(iter(card["contamination"]["benchmarks"].values())) | {"fields": HOSTILE}
    hostile["contamination"] = card["contamination"] | {"benchmarks": {HOSTILE: benchmark}}
    hostile["duplicates"]["earlier"] = [HOSTILE]
    html = render(hostile)
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert set(page.tags) <= set(Page(render(card)).tags)
    assert html.count("&lt;script&gt;alert(1)") >= 12
    assert "\x00" not in html
    assert "\x1b" not in html
    assert long not in html
    assert f"{'x' * 100}… (10,000 characters)" in page.text
    html.encode()
    # Whatever turns the direction of text does so within an element of its own.
    for turned in re.finditer("\u202e|[\u05d0\u0645]", html.partition("</title>")[2]):
        assert re.search(r'<(bdi|p dir="auto"|code)>([^<]|<wbr>)*$', html.partition("</title>")[2][: turned.start()])


def test_long_tables_are_cut_with_a_sum() -> None:
    tally = Tally()
    for n in range(40):
        tally.add(row(str(n), "x", f"l{n:02}", license=f"licence {n:02}"), "", 1, f"source {n:02}")
        tally.add(row(f"-{n}", "", "l00"), "empty", 0, f"source {n:02}")
    page = Page(render(about(tally.card_values())))
    *_, last, others = page.tables["Documents and text by source"]
    assert last[:3] == ["source 29", "2", "1"]
    assert others[:4] == ["10 others", "20", "10", "50.0\N{NO-BREAK SPACE}%"]
    assert others[-1] == "empty 10"
    assert page.tables["Kept documents by licence"][-1][:3] == ["10 others", "10", "25.0\N{NO-BREAK SPACE}%"]
    assert len(page.tables["Documents and text by language"]) == 1 + 30 + 1


def test_shares_never_say_all_or_nothing_where_it_is_not_so() -> None:
    tally = Tally()
    for n in range(3000):
        tally.add(row(str(n), "x"), "" if n else "empty", 1, "web")
    page = Page(render(about(tally.card_values())))
    assert page.tables["Documents and text by source"][1][3] == ">\N{NO-BREAK SPACE}99.9\N{NO-BREAK SPACE}%"
    assert page.tables["Documents by decision"][-1][2] == "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%"


def luminance(color: str) -> float:
    """Relative luminance of a hexadecimal colour (WCAG 2.2)."""
    digits = color.lstrip("#")
    pairs = [one * 2 for one in digits] if len(digits) == 3 else re.findall("..", digits)
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(p, 16) / 255 for p in pairs)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_is_enough_in_both_schemes(scheme: int) -> None:
    roots = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colors = dict(re.findall(r"--(\w+): (#\w+)", roots[scheme]))
    for words in ("ink", "soft", "link"):
        for behind in ("paper", "raised"):
            assert contrast(colors[words], colors[behind]) >= 4.5
    for shape in ("kept", "taken", "edge"):
        assert contrast(colors[shape], colors["paper"]) >= 3
    for one, other in (("kept", "came"), ("taken", "came")):
        assert contrast(colors[one], colors[other]) >= 3


def test_every_kind_and_reason_has_words() -> None:
    assert set(SCRUBBED) == set(KINDS)
    assert all(decision.says and decision.stage for decision in REASONS.values())
    assert len(SOURCES) == 20

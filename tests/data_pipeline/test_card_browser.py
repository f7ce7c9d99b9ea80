"""Promises of the page in a browser: it fits phones, desks and paper, and asks for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.card.page import render
from data_pipeline.card.tally import Tally
from tests.browser import Browser
from tests.data_pipeline import invented_card
from tests.data_pipeline.invented_card import row

DESK, PHONE = 1280, 390
PAPER = 695  # CSS pixels between the margins of A4

WIDER = "document.documentElement.scrollWidth - innerWidth"
# Cells whose text reaches out of them, and columns of numbers whose right ends differ.
SPILLED = "[...document.querySelectorAll('th, td, li, dd, p')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
RAGGED = """
[...document.querySelectorAll('tbody')].filter(body => {
  const ends = {};
  for (const cell of body.querySelectorAll('td.n, th.n')) {
    const range = document.createRange();
    range.selectNodeContents(cell);
    if (cell.textContent) (ends[cell.cellIndex] ??= []).push(range.getBoundingClientRect().right);
  }
  return Object.values(ends).some(of => Math.max(...of) - Math.min(...of) > 0.5);
}).length
"""
SCROLLING = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A rich card, one of a single document, and one of names that are as bad as names can be."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = Tally()
    for n, id_ in enumerate(("<script>alert(1)</script>", "x" * 10_000, "مستند\u202e" * 40, "長" * 300)):
        hostile.add(row(id_, id_ * 9, id_[:50], license=id_), "", 9 * 10 ** (3 * n), id_)
        hostile.add(row(id_, id_ * 9, id_[:50]), "gopher_too_few_words", 9, id_)
    single = Tally()
    single.add(row("a", "one document"), "", 12, "web")
    cards = {"rich": invented_card.card()}
    cards["hostile"] = cards["rich"] | hostile.card_values() | {"name": "x" * 500}
    cards["single"] = invented_card.about(single.card_values())
    for name, card in cards.items():
        (folder / f"{name}.html").write_text(render(card), "utf-8")
    return {name: folder / f"{name}.html" for name in cards}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", ["rich", "hostile", "single"])
def test_it_fits_and_asks_for_nothing(tab: Browser, pages: dict[str, Path], name: str, width: int, dark: bool) -> None:
    tab.open(pages[name], width, dark=dark)
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate(WIDER) == 0
    assert tab.evaluate(SPILLED) == 0
    assert tab.evaluate(RAGGED) == 0
    assert tab.complaints() == []
    assert tab.requests() == [pages[name].as_uri()]


def test_no_table_scrolls_on_a_desk(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["rich"], DESK)
    assert tab.evaluate(SCROLLING) == 0
    tab.open(pages["rich"], PHONE)
    assert tab.evaluate(SCROLLING) > 0  # what does not fit scrolls by itself


def test_it_is_dark_where_that_is_preferred(tab: Browser, pages: dict[str, Path]) -> None:
    behind: dict[bool, Any] = {}
    for dark in (False, True):
        tab.open(pages["rich"], DESK, dark=dark)
        behind[dark] = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert behind[False] == "rgb(255, 255, 255)"
    assert sum(map(int, behind[True].removeprefix("rgb(").removesuffix(")").split(", "))) < 100


@pytest.mark.parametrize("dark", [False, True])
def test_paper_is_white_and_holds_it_all(tab: Browser, pages: dict[str, Path], dark: bool) -> None:
    tab.open(pages["rich"], PAPER, dark=dark, media="print")
    assert tab.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == "#fff"
    assert tab.evaluate(WIDER) == 0
    assert tab.evaluate(SCROLLING) == 0
    assert tab.print().startswith(b"%PDF")


def test_what_is_read_out_is_there(tab: Browser, pages: dict[str, Path]) -> None:
    """Every region has a name; what only shows figures that stand beside it is passed over."""
    tab.open(pages["rich"], DESK)
    nodes = tab.ask("Accessibility.getFullAXTree")["nodes"]
    named = {"region", "table", "heading", "link", "navigation"}
    for node in nodes:
        if not node.get("ignored") and node["role"]["value"] in named:
            assert node.get("name", {}).get("value"), node
    tables = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "table"]
    assert any(name.startswith("Documents by length") for name in tables)
    assert tab.evaluate("[...document.querySelectorAll('.bar')].every(e => e.ariaHidden === 'true')")


def test_direction_of_texts_stays_in_their_place(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["hostile"], DESK)
    directions = tab.evaluate("[...document.querySelectorAll('.samples p')].map(e => getComputedStyle(e).direction)")
    assert set(directions) == {"ltr", "rtl"}
    isolated = "[...document.querySelectorAll('bdi, code')].every(e => getComputedStyle(e).unicodeBidi === 'isolate')"
    assert tab.evaluate(isolated)

"""The data card tells the truth, shows no text and needs nothing but itself."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conf.schema import Job, Source
from data_pipeline import data_card
from data_pipeline.curate import curate
from data_pipeline.filters import gopher
from data_pipeline.private.found import KINDS
from data_pipeline.tally import Tally

ROOM, JUDGES = Path(data_card.__file__).parent, ("judge.py", "curate.py")
TEXT = "The mill stands by the river, and people of {} come to have their grain ground there. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("card")
    rows = [{"id": f"<b>{n}</b>", "text": TEXT.format(f"Village{n % 8}") * 5 * (n + 1)} for n in range(9)]
    (root / "in.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"text": "short & <i>sweet</i>"}\n'
    )
    job = Job(name="mills & rivers")
    job.curate.output = str(root / "text")
    job.curate.sources = [Source(paths=[str(root / "in.jsonl")], license="CC0-1.0")]
    curate(job)
    return root / "text"


class Page(HTMLParser):
    """Checks that tags close in order; collects tags, attributes and cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    page = Page()
    page.feed((folder / "data_card.html").read_text("utf-8"))
    assert page.open == []
    return page


def test_the_page_needs_nothing_but_itself(page: Page, folder: Path) -> None:
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href")]
    text = (folder / "data_card.html").read_text("utf-8")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_shows_the_counts(page: Page, folder: Path) -> None:
    card = json.loads((folder / "data_card.json").read_text("utf-8"))
    assert card["format"] == 1
    assert card["counts"] == json.loads((folder / "manifest.json").read_text("utf-8"))["counts"]
    assert card["counts"]["dropped"] == {"gopher_too_few_words": 1}
    for line in ("mills & rivers", "9 of 10 documents kept", "CC0-1.0", "gopher_too_few_words: Gopher: too few words"):
        assert line in page.text
    assert sum(card["lengths"].values()) == card["counts"]["documents_kept"] == 9
    assert page.tags.count("rect") >= 3


def test_samples_are_ids_never_texts(page: Page, folder: Path) -> None:
    card = json.loads((folder / "data_card.json").read_text("utf-8"))
    assert card["samples"]["kept"] == [f"<b>{n}</b>" for n in range(5)]
    assert "<b>0</b>" in page.text  # escaped in the source, or the parser would have taken it for a tag
    for text in ("grain", "sweet"):
        assert text not in page.text
        assert text not in json.dumps(card)


def reasons_in(tree: ast.AST) -> Iterator[str]:
    """The texts that code gives as a reason: to a parameter or name called so, or as the third value of a verdict."""
    for node in ast.walk(tree):
        given: list[ast.expr] = []
        if (isinstance(node, ast.keyword) and node.arg == "reason") or (
            isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "reason" for to in node.targets)
        ):
            given = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Verdict":
            given = node.args[2:3]
        for value in given:
            constants = (one.value for one in ast.walk(value) if isinstance(one, ast.Constant))
            yield from (one for one in constants if isinstance(one, str) and one)


def test_the_page_names_sources_without_folders_of_this_machine(page: Page, folder: Path) -> None:
    assert f"paths: {folder.parent.name}/in.jsonl, split: train, text_field: text, license: CC0-1.0" in page.text
    for name in ("data_card.html", "data_card.json"):
        assert str(folder.parent) not in (folder / name).read_text("utf-8")


def test_every_reason_is_explained() -> None:
    strict = gopher.Signals(0, 99.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0)
    reasons = {*gopher.broken_rules(strict, 50, 100_000), *gopher.broken_rules(gopher.measure("a " * 9, "en"), 1, 2)}
    assert len(reasons) == 9
    given = {reason for file in (*sorted(ROOM.glob("sources/*.py")), *(ROOM / name for name in JUDGES))
             for reason in reasons_in(ast.parse(file.read_text("utf-8")))}  # fmt: skip
    assert {"broken_record", "too_large", "damaged", "http_status", "unreadable", "empty", "exact_duplicate",
            "language_uncertain"} <= given  # fmt: skip
    assert reasons | given <= set(data_card.REASONS)
    assert set(data_card.SCRUBBED) == set(KINDS)


def test_long_tables_are_cut_with_a_sum() -> None:
    tally = Tally()
    for n in range(40):
        row = {"id": str(n), "text": "x", "language": f"l{n:02}", "license": "", "quality": 1.0}
        row |= {f"scrubbed_{kind}": 0 for kind in KINDS}
        tally.add("s", row, "", 1)
    card = {"name": "n", "lineage": "0" * 64, "counts": tally.counts(), **tally.details(), "config": {}}
    assert "<td>10 others</td><td class=n>10</td><td class=n>25.0 %</td>" in data_card.render(card)

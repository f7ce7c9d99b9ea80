"""What the page is made of: text that cannot break out of its place, numbers, bars and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import TypeAlias

MOST_ROWS = 30  # of a table; the rest is summed in one row
LONGEST_NAME = 100  # characters of a name that are shown

# What is no character of a text: controls but for white space, and surrogates, which no file can hold.
_NO_CHARACTERS = dict.fromkeys(
    (*range(9), 11, 12, *range(14, 32), *range(127, 160), *range(0xD800, 0xE000)), "\N{REPLACEMENT CHARACTER}"
)

_JOINED = "\N{NO-BREAK SPACE}"  # a number stays with its unit


class Html(str):
    """Markup; any other text is escaped where it is put in."""

    __slots__ = ()


class Figure(Html):
    """A number as it is shown: it stands at the right of its column."""

    __slots__ = ()


Cell: TypeAlias = int | str


def text(value: object) -> Html:
    """Escaped."""
    return Html(html.escape(str(value).translate(_NO_CHARACTERS)))


def code(value: str) -> Html:
    """A key or a reason, that may go on in the next line after each of its parts."""
    return Html(f"<code>{text(value).replace('.', '.<wbr>').replace('_', '_<wbr>')}</code>")


def name(value: str) -> Html:
    """A name from outside: cut where it is too long, and its direction its own matter."""
    shown = value if len(value) <= LONGEST_NAME else f"{value[:LONGEST_NAME]}… ({len(value):,} characters)"
    return Html(f"<bdi>{text(shown)}</bdi>")


def size(count: int) -> Figure:
    """1.2 GB."""
    for unit, of in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= 0.9995 * unit:  # so that none reads 1,000.0
            return Figure(f"{count / unit:,.1f}{_JOINED}{of}")
    return Figure(f"{count:,}{_JOINED}B")


def share(part: int, whole: int) -> Figure:
    """12.3 %. Neither nothing nor all of it is said where it is not so."""
    if not whole:
        return Figure("–")
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return Figure(f"&lt;{_JOINED}0.1{_JOINED}%")
    if 99.95 <= percent < 100:
        return Figure(f"&gt;{_JOINED}99.9{_JOINED}%")
    return Figure(f"{percent:.1f}{_JOINED}%")


def change(before: int, now: int) -> Figure:
    """+12, −3."""
    return Figure(f"{now - before:+,}".replace("-", "\N{MINUS SIGN}"))


def bar(*parts: tuple[str, float]) -> Html:
    """Bars from the left, the later over the earlier; each a class of the style sheet and its share of the width.

    What they show stands in figures beside them.
    """
    drawn = "".join(f'<i class="{kind}" style="width:{100 * width:.2f}%"></i>' for kind, width in parts if width)
    return Html(f'<span class="bar" aria-hidden="true">{drawn}</span>')


def first(items: Mapping[str, Mapping[str, int]]) -> list[tuple[Html, Mapping[str, int]]]:
    """The first entries by name; the others summed as one, so that a table has an end."""
    names = list(items)
    rest = names[MOST_ROWS:] if len(names) > MOST_ROWS + 1 else []
    rows: list[tuple[Html, Mapping[str, int]]] = [(name(one), items[one]) for one in names[: len(names) - len(rest)]]
    if rest:
        keys = dict.fromkeys(key for one in rest for key in items[one])
        rows.append((Html(f"{len(rest):,} others"), {key: sum(items[one].get(key, 0) for one in rest) for key in keys}))
    return rows


class Tables:
    """Tables of one page. Each is a region that scrolls by itself where it is too wide, named by its caption."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def __call__(
        self, caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], note: str | Html = "", kind: str = ""
    ) -> Html:
        """A table with a header for each column and row; the caption says what it is, the note how to read it."""
        return self.of_groups(caption, head, [("", rows)], note, kind)

    def of_groups(
        self,
        caption: str,
        head: Sequence[str],
        groups: Iterable[tuple[str | Html, Iterable[Sequence[Cell]]]],
        note: str | Html = "",
        kind: str = "",
    ) -> Html:
        """A table whose rows stand under titles; a group without a title has none."""
        number = next(self._numbers)
        bodies, numeric = [], [False] * len(head)
        for title, rows in groups:
            lines = [f'<tr><th colspan="{len(head)}" scope="rowgroup">{_markup(title)}</th></tr>'] if title else []
            for row in rows:
                numeric = [isinstance(cell, int | Figure) for cell in row]
                lines.append(
                    f"<tr>{_cell(row[0], 'th', ' scope=row')}{''.join(_cell(cell, 'td') for cell in row[1:])}</tr>"
                )
            bodies.append("<tbody>\n" + "\n".join(lines) + "\n</tbody>")
        heads = "".join(
            f'<th scope="col"{" class=n" if right else ""}>{text(title)}</th>' if title else "<td></td>"
            for title, right in zip(head, numeric, strict=True)
        )
        said = f" <span>{_markup(note)}</span>" if note else ""
        return Html(
            f'<div class="scroll" role="region" tabindex="0" aria-labelledby="table-{number}">'
            f"<table{f' class={kind}' if kind else ''}>"
            f'<caption><b id="table-{number}">{text(caption)}</b>{said}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n" + "\n".join(bodies) + "\n</table></div>"
        )


def _cell(value: Cell, tag: str, scope: str = "") -> str:
    if isinstance(value, int):
        value = Figure(f"{value:,}")
    return f"<{tag}{scope}{' class=n' if isinstance(value, Figure) else ''}>{_markup(value)}</{tag}>"


def _markup(value: str) -> Html:
    return value if isinstance(value, Html) else text(value)

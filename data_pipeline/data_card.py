"""The data card: a page that tells a person what a curated collection is made of, and what was left out of it.

Self-contained HTML for light and dark screens, from the same values as `data_card.json`. Shows ids of samples, never
their text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MOST_ROWS = 30  # of a table; the rest is summed in one row

REASONS = {
    "unreadable": "not text, or not the format its name says",
    "broken_record": "a broken line or row in a good file",
    "too_large": "larger than a document may be; it was not read",
    "damaged": "a stretch of a file that cannot be read, or is missing at its end",
    "http_status": "the server answered with something else than 200",
    "content_type": "neither HTML nor plain text",
    "empty": "no text",
    "language_uncertain": "no language is certain enough",
    "language_unwanted": "a language that was not asked for",
    "private_items": "more personal data and secrets than a document may hold",
    "blocked_url": "a page on a block list",
    "blocked_domain": "a domain on a block list",
    "blocked_text": "a text on a block list",
    "prohibited": "what must not be stored: counted, and kept nowhere",
    "exact_duplicate": "the same text came before",
    "gopher_too_few_words": "Gopher: too few words",
    "gopher_too_many_words": "Gopher: too many words",
    "gopher_mean_word_length": "Gopher: mean word length outside 3 to 10 characters",
    "gopher_hashes": "Gopher: more than one # per ten words",
    "gopher_ellipses": "Gopher: more than one ellipsis per ten words",
    "gopher_bullet_lines": "Gopher: over 90 % of the lines are bullet points",
    "gopher_ellipsis_lines": "Gopher: over 30 % of the lines end in an ellipsis",
    "gopher_alphabetic_words": "Gopher: under 80 % of the words hold a letter",
    "gopher_stop_words": "Gopher: fewer than two different stop words (English only)",
}

SCRUBBED = {
    "key": "keys and secrets",
    "credentials": "credentials in URLs",
    "email": "e-mail addresses",
    "iban": "bank account numbers",
    "card": "payment card numbers",
    "wallet": "wallet addresses",
    "ipv6": "IPv6 addresses",
    "ipv4": "IPv4 addresses",
    "national_id": "national numbers",
    "phone": "telephone numbers",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fcfcfd; --soft: #667; --line: #dde; --bar: #3e63dd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --paper: #111113; --soft: #a0a4ab; --line: #2e3135; --bar: #849dff; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p, caption, .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th.n, td.n { text-align: right; white-space: nowrap; }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg rect { fill: var(--bar); } svg text { fill: var(--soft); font-size: 12px; }
"""


def render(card: Mapping[str, Any]) -> str:
    """The page for the values of `data_card.json`."""
    counts = card["counts"]
    read, kept = counts["documents_in"], counts["documents_kept"]
    sections = [
        f"<h1>Data card: {_text(card['name'])}</h1>",
        f"<p>{kept:,} of {read:,} documents kept, "
        f"{_size(counts['bytes_kept'])} of {_size(counts['bytes_in'])} of text. "
        f"Replaced by placeholders in the kept text: {_scrubbed(counts['scrubbed'])}. "
        f"Lineage <code>{_text(card['lineage'][:16])}</code>.</p>",
        "<h2>What was kept and why the rest was not</h2>",
        _table(
            ("outcome", "documents", "share"),
            [
                ("read", read, _share(read, read)),
                *(
                    (f"{reason}: {REASONS.get(reason, reason)}", count, _share(count, read))
                    for reason, count in counts["dropped"].items()
                ),
                ("kept", kept, _share(kept, read)),
            ],
            "Each dropped document counts once, under the first rule it broke; all are in removed/ with that reason.",
        ),
        "<h2>Sources</h2>",
        _table(
            ("source", "read", "kept", "text read", "text kept", "most frequent reasons"),
            [
                (
                    name,
                    one["documents_in"],
                    one["documents_kept"],
                    _size(one["bytes_in"]),
                    _size(one["bytes_kept"]),
                    ", ".join(f"{reason} {count:,}" for reason, count in list(one["dropped"].items())[:3]) or "none",
                )
                for name, one in counts["sources"].items()
            ],
        ),
        "<h2>Lengths of kept documents</h2>",
        _histogram(card["lengths"]),
        "<h2>Languages of kept documents</h2>",
        _table(("language", "documents", "share"), _counted(counts["languages"], kept), "As CLD2 finds them."),
        "<h2>Licences of kept documents</h2>",
        _table(("licence", "documents", "share"), _counted(card["licenses"], kept), "As the sources state them."),
        "<h2>Quality of kept documents</h2>",
        _table(
            ("quality", "documents", "share"),
            [(score, count, _share(count, kept)) for score, count in card["quality"].items()],
            "The share of the Gopher rules that hold with limits twice as strict: a distance from the limits, "
            "not a verdict on the writing.",
        ),
        "<h2>Samples</h2>",
        _table(
            ("outcome", "first ids"),
            [(outcome, ", ".join(ids)) for outcome, ids in card["samples"].items()],
        ),
        "<h2>Configuration</h2>",
        _table(("key", "value"), list(_keys(card["config"]))),
    ]
    title = _text(f"Data card: {card['name']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _keys(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the configuration: a source each with the keys that are set, then the other keys."""
    for n, source in enumerate(config.get("sources", ())):
        yield f"curate.sources[{n}]", ", ".join(f"{key}: {_plain(value)}" for key, value in source.items() if value)
    for key, value in config.items():
        if key != "sources":
            yield f"curate.{key}", _plain(value)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: object) -> str:
    return html.escape(str(value))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _share(count: int, whole: int) -> str:
    return f"{100 * count / whole:.1f} %" if whole else "-"


def _counted(counts: Mapping[str, int], whole: int) -> list[tuple[object, ...]]:
    """Rows of the most frequent entries; the others together in a last one."""
    items = list(counts.items())
    rows: list[tuple[object, ...]] = [(name, count, _share(count, whole)) for name, count in items[:MOST_ROWS]]
    if rest := sum(count for _, count in items[MOST_ROWS:]):
        rows.append((f"{len(items) - MOST_ROWS} others", rest, _share(rest, whole)))
    return rows


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]], caption: str = "") -> str:
    rows = list(rows)
    numeric = [bool(rows) and (isinstance(rows[0][i], int) or head[i] == "share") for i in range(len(head))]

    def cells(tag: str, values: tuple[object, ...]) -> str:
        return "".join(
            f"<{tag}{' class=n' if number else ''}>{f'{value:,}' if isinstance(value, int) else _text(value)}</{tag}>"
            for value, number in zip(values, numeric, strict=True)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    note = f"<caption>{_text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{note}\n<thead><tr>{cells("th", head)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _histogram(lengths: Mapping[str, int]) -> str:
    """Documents per doubling of length, as bars."""
    low, high = min(map(int, lengths)), max(map(int, lengths))
    bins = [1 << power for power in range(low.bit_length() - 1, high.bit_length())]
    width, height, most = 640 / len(bins), 160, max(lengths.values())
    bars = []
    for place, size in enumerate(bins):
        count = lengths.get(str(size), 0)
        tall = height * count / most
        middle = (place + 0.5) * width
        bars.append(
            f'<rect x="{place * width + 2:.1f}" y="{20 + height - tall:.1f}" width="{width - 4:.1f}" '
            f'height="{tall:.1f}"/>'
            f'<text x="{middle:.1f}" y="{14 + height - tall:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text x="{middle:.1f}" y="{height + 36}" text-anchor="middle">{_power(size)}</text>'
        )
    return (
        f'<svg viewBox="0 0 640 {height + 44}" role="img" aria-label="Histogram of document lengths">'
        f"{''.join(bars)}</svg>"
        '<p class="soft">UTF-8 bytes of text, from the number below a bar up to its double.</p>'
    )


def _scrubbed(counts: Mapping[str, int]) -> str:
    """2 e-mail addresses, 1 key."""
    return ", ".join(f"{count:,} {SCRUBBED[kind]}" for kind, count in counts.items() if count) or "nothing"


def _power(size: int) -> str:
    """1024 -> 1 Ki."""
    for unit, name in ((1 << 20, " Mi"), (1 << 10, " Ki")):
        if size >= unit:
            return f"{size // unit}{name}"
    return str(size)

"""The page that tells a person what a tokenizer makes of each language, and which of its pieces earn their place.

Self-contained HTML for light and dark screens, wide and narrow ones, from the values of `tokenizer_report.json`. Shows
pieces and code points, never text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

MOST_LANGUAGES = 40  # of a table; the others are in the JSON
LONGEST = 16  # characters of a piece that have a row of their own: what trained models have at most

CHANGES = {
    "unknown": "characters that have no piece and no bytes became the unknown piece",
    "blank_sign": "U+2581, with which SentencePiece writes the blank, came back as a blank",
    "white_space": "blanks or line ends were changed, added or left out",
    "invisible": "control or format characters were changed or left out",
    "nfc": "characters were composed (Unicode NFC)",
    "nfkc": "characters were replaced by plainer ones (Unicode NFKC)",
    "case": "upper case became lower case",
    "other": "none of the known changes explains it",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fcfcfd; --soft: #60646c; --line: #dde; --bar: #3e63dd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #edeef0; --paper: #111113; --soft: #a0a4ab; --line: #2e3135; --bar: #849dff; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
th:last-child, td:last-child { padding-right: 0; }
th { font-weight: 600; vertical-align: bottom; }
th.n, td.n { text-align: right; } td.n { white-space: nowrap; }
.bar { display: block; height: 4px; margin-left: auto; border-radius: 2px; background: var(--bar); }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
ul.pieces { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; }
ul.pieces code { border: 1px solid var(--line); border-radius: 4px; padding: .1rem .4rem; }
@media (max-width: 30rem) { table { font-size: .875rem; } th, td { padding-right: .5rem; } }
"""


class Figure(NamedTuple):
    """A number as it is shown, with a bar below it where there is one: a share of the width of its cell, 0 to 1."""

    shown: str
    bar: float | None = None


def render(report: Mapping[str, Any]) -> str:
    """The page for the values of `tokenizer_report.json`."""
    languages: Mapping[str, Mapping[str, Any]] = report["languages"]
    shown = dict(list(languages.items())[:MOST_LANGUAGES])
    sections = [
        "<h1>Tokenizer report</h1>",
        _summary(report),
        "<h2>What each language costs</h2>",
        _cost(shown, report["all"]),
        _left_out(len(languages) - len(shown)),
        "<h2>What words and characters become</h2>",
        _fragments(shown, report["all"]),
        "<h2>Whether text comes back as it was</h2>",
        _round_trip(shown, report),
        "<h2>Use of the vocabulary</h2>",
        *_vocabulary(report["vocabulary"], report["all"]["tokens"]),
        "<h2>The tokenizer</h2>",
        _settings(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Tokenizer report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _summary(report: Mapping[str, Any]) -> str:
    whole, vocabulary = report["all"], report["vocabulary"]
    trip, unused = whole["round_trip"], sum(vocabulary["unused"].values())
    return (
        f"<p>{whole['documents']:,} documents in {len(report['languages'])} languages, held-out ones among them: "
        f"{_size(whole['bytes'])} of text became {whole['tokens']:,} tokens of a vocabulary of "
        f"{report['tokenizer']['vocab_size']:,}, {_decimal(whole['bytes_per_token'])} bytes each. The baseline, a "
        f"tokenizer of bytes, has one. {_share(whole['byte_tokens'], whole['tokens'])} of the tokens are single bytes "
        f"of characters without a piece, {whole['unknown_tokens']:,} are unknown. {trip['exact']:,} of the "
        f"{trip['tried']:,} documents that were tried came back as they were. {unused:,} of "
        f"{vocabulary['used'] + unused:,} pieces were never used.</p>"
    )


def _cost(languages: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    longest = max((one["bytes_per_token"] or 0 for one in languages.values()), default=0) or 1

    def row(name: str, one: Mapping[str, Any]) -> tuple[object, ...]:
        premium = one["premium"] or {"bytes": None, "characters": None}
        return (
            name,
            Figure(_decimal(one["bytes_per_token"]), (one["bytes_per_token"] or 0) / longest),
            Figure(_decimal(one["characters_per_token"])),
            Figure(_decimal(premium["bytes"])),
            Figure(_decimal(premium["characters"])),
            Figure(_size(one["bytes"])),
            one["documents"],
            one["tokens"],
        )

    return _table(
        ("language", "bytes per token", "characters per token", "tokens per byte, en = 1",
         "tokens per character, en = 1", "text", "documents", "tokens"),
        [row("all", whole), *(row(*item) for item in languages.items())],
        "Languages as curation found them, the most text first. Where en = 1, a figure says how many tokens a language "
        "takes where English takes one, for as many bytes or for as many characters. A byte is a letter in English and "
        "half or a third of one elsewhere, and languages differ in how much they say in a character: only the same "
        "text in both would tell what it costs to say the same.",
    )  # fmt: skip


def _left_out(others: int) -> str:
    return f"<p>{others:,} languages with less text are in tokenizer_report.json only.</p>" if others > 0 else ""


def _fragments(languages: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    most = max((one["tokens_per_word"] or 0 for one in languages.values()), default=0) or 1

    def row(name: str, one: Mapping[str, Any]) -> tuple[object, ...]:
        fertility = one["tokens_per_word"]
        return (
            name,
            Figure(_decimal(fertility), fertility / most)
            if fertility
            else Figure("-" if one.get("spaced", True) else "no blanks"),
            Figure(_share(one["whole_words"], one["words"])),
            Figure(_decimal(one["tokens"] / one["characters"] if one["characters"] else None)),
            Figure(_share(one["blank_tokens"], one["tokens"])),
            Figure(_share(one["byte_tokens"], one["tokens"])),
            one["unknown_tokens"],
        )

    return _table(
        ("language", "tokens per word", "words of one piece", "tokens per character", "blanks alone", "single bytes",
         "unknown"),
        [row("all", whole), *(row(*item) for item in languages.items())],
        "Fertility is tokens per word, a word being what stands between blanks and line ends, with its punctuation. "
        "Languages that are written without blanks have no such words; tokens per character say as much of them. "
        "The last three columns are shares of the tokens, and the number of unknown ones: blanks and line ends that no "
        "word took in, and characters without a piece.",
    )  # fmt: skip


def _round_trip(languages: Mapping[str, Mapping[str, Any]], report: Mapping[str, Any]) -> str:
    trip = report["all"]["round_trip"]
    parts = [
        f"<p>{trip['tried']:,} of {report['all']['documents']:,} documents were decoded: of each language a sample by "
        "hashes of their ids, the smaller the more text there is, but never under one in 16.</p>"
    ]
    if not report["changes"]:
        return parts[0] + "<p>All of them are, to the character, the text that was encoded.</p>"
    parts.append(
        _table(
            ("change", "documents", "first document", "in the text", "decoded"),
            [
                (CHANGES[kind], one["documents"], one["id"], one["text"] or "nothing", one["decoded"] or "nothing")
                for kind, one in report["changes"].items()
            ],
            "Each document under the last change that it takes to explain its difference; code points from where the "
            "two part.",
        )
    )
    lossy = {
        code: one["round_trip"]
        for code, one in languages.items()
        if one["round_trip"]["exact"] < one["round_trip"]["tried"]
    }
    parts.append(
        _table(
            ("language", "tried", "came back exactly", "share"),
            [
                (
                    code,
                    one["tried"],
                    one["exact"],
                    Figure(_share(one["exact"], one["tried"]), one["exact"] / one["tried"]),
                )
                for code, one in lossy.items()
            ],
            "Of all other languages every document that was tried came back.",
        )
    )
    return "\n".join(parts)


def _vocabulary(vocabulary: Mapping[str, Any], tokens: int) -> Iterator[str]:
    unused = sum(vocabulary["unused"].values())
    pieces = vocabulary["used"] + unused
    rows: list[tuple[object, ...]] = [
        (name, count, Figure(_share(count, pieces), count / pieces))
        for name, count in (
            ("used at least once", vocabulary["used"]),
            ("used at least 100 times", vocabulary["used_100_times"]),
            (f"never used: {_kinds(vocabulary['unused']) or 'none'}", unused),
        )
    ]
    yield _table(("pieces", "number", "share"), rows, "Of the pieces that a text can hold, so without control pieces.")
    if vocabulary["unused_examples"]:
        chips = "".join(f"<li><code>{_visible(piece)}</code></li>" for piece in vocabulary["unused_examples"])
        yield f'<p>The first normal pieces by id that were never used:</p>\n<ul class="pieces">{chips}</ul>'
    yield _table(
        ("of the pieces, the most frequent", "share of all tokens"),
        [
            (f"{percent} %", Figure(_percent(share), share))
            for percent, share in vocabulary["coverage"].items()
            if share is not None
        ],
    )
    lengths = _grouped(vocabulary["lengths"])
    most = max((row["pieces"] for row in lengths.values()), default=0) or 1
    yield _table(
        ("length of a piece", "pieces", "tokens", "share of all tokens"),
        [
            (
                name,
                Figure(f"{row['pieces']:,}", row["pieces"] / most),
                row["tokens"],
                Figure(_share(row["tokens"], tokens), row["tokens"] / tokens if tokens else 0.0),
            )
            for name, row in lengths.items()
        ],
        "In characters, a blank at its head included; single bytes apart.",
    )


def _grouped(lengths: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """The rows of lengths, those beyond `LONGEST` as one."""
    rows: dict[str, dict[str, int]] = {}
    for name, row in lengths.items():
        short = "single byte" if name == "byte" else name if int(name) <= LONGEST else f"{LONGEST + 1} or more"
        group = rows.setdefault(short, {"pieces": 0, "tokens": 0})
        for key in group:
            group[key] += row[key]
    return rows


def _settings(report: Mapping[str, Any]) -> str:
    tokenizer, vocabulary = report["tokenizer"], report["vocabulary"]
    kinds, several = vocabulary["kinds"], vocabulary["several_digits"]
    changes = "changes characters" if tokenizer["changes_characters"] else "changes no character"
    rows = [
        ("sha256", tokenizer["sha256"]),
        ("text read from", f"lineage {report['lineage'][:16]}"),
        ("model", tokenizer["model_type"]),
        ("pieces", _kinds(kinds)),
        ("characters without a piece", _fallback(tokenizer["byte_fallback"], kinds.get("byte", 0))),
        ("digits", f"{several:,} pieces hold several in a row" if several else "one by one"),
        ("normalisation", f"{tokenizer['normalizer'] or 'none named'}: {changes}"),
        ("blank before a text", "added" if tokenizer["adds_prefix"] else "none is added"),
        ("blanks in a row", "made one" if tokenizer["removes_blanks"] else "kept"),
    ]
    return _table(("setting", "value"), rows)


def _kinds(counts: Mapping[str, int]) -> str:
    """256 byte, 3 control."""
    return ", ".join(f"{count:,} {kind.replace('_', '-')}" for kind, count in counts.items())


def _fallback(byte_fallback: bool, pieces: int) -> str:
    if not byte_fallback:
        return "become the unknown piece"
    return "become bytes" if pieces == 256 else f"become bytes, of which only {pieces} have a piece"


def _text(value: object) -> str:
    return html.escape(str(value))


def _visible(piece: str) -> str:
    """A piece with its direction kept apart from the page's, and an escape for what has no shape."""
    shown = "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in piece)
    return f"<bdi>{_text(shown)}</bdi>"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _share(count: int, whole: int) -> str:
    return _percent(count / whole) if whole else "-"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]], note: str = "") -> str:
    rows = list(rows)
    numeric = [isinstance(value, int | Figure) for value in rows[0]] if rows else [False] * len(head)
    heads = "".join(
        f"<th{' class=n' if number else ''}>{_text(name)}</th>" for name, number in zip(head, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f"<p>{_text(note)}</p>\n" if note else ""
    ) + f'<div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, Figure):
        bar = "" if value.bar is None else f'<span class="bar" style="width:{100 * value.bar:.1f}%"></span>'
        return f"<td class=n>{_text(value.shown)}{bar}</td>"
    return f"<td class=n>{value:,}</td>" if isinstance(value, int) else f"<td>{_text(value)}</td>"

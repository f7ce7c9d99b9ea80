"""The data card as a page: what a curated collection is made of, what was left out of it and why.

Self-contained HTML for screens and print. A reader with 20 seconds has the top; everything else is in the order in
which an auditor asks. The values are those of `data_card.json`, and nothing else: no date, and nothing of this machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from data_pipeline.card.elements import (
    Cell,
    Figure,
    Html,
    Tables,
    bar,
    change,
    code,
    first,
    name,
    share,
    size,
    text,
)
from data_pipeline.card.reasons import KEPT, REASONS, STAGES, Limit, limits
from data_pipeline.card.style import STYLE
from data_pipeline.private.found import KINDS
from data_pipeline.signals.columns import COLUMNS
from data_pipeline.signals.thresholds import OTHERS, SETS

Card: TypeAlias = Mapping[str, Any]

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
_CHANGES = 10  # of each kind that are shown
_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
{top}
</header>
<main>
{main}
</main>
</body>
</html>
"""


def render(card: Card) -> str:
    """The page for the values of `data_card.json` of format 2."""
    table = Tables()
    sections = [
        (title, "".join(content(card, table)))
        for title, content in (
            ("What was kept, and why the rest was not", _funnel),
            ("What changed since the last version", _changes),
            ("Sources", _sources),
            ("Languages", _languages),
            ("Licences", _licenses),
            ("Lengths and quality", _lengths_and_quality),
            ("Duplicates", _duplicates),
            ("Personal data and secrets", _private),
            ("Benchmarks", _contamination),
            ("Classifiers", _classifiers),
            ("Limits of the rules", _thresholds),
            ("Signals of kept documents", _signals),
            ("Samples", _samples),
            ("Configuration", _configuration),
        )
    ]
    shown = [(f"section-{n}", title, content) for n, (title, content) in enumerate(sections, 1) if content]
    links = "".join(f'<li><a href="#{place}">{title}</a></li>' for place, title, _ in shown)
    return _FRAME.format(
        title=text(f"Data card: {card['name']}"),
        style=STYLE,
        top=f'{_top(card)}\n<nav aria-label="Sections"><ul>{links}</ul></nav>',
        main="\n".join(
            f'<section aria-labelledby="{place}"><h2 id="{place}">{title}</h2>\n{content}</section>'
            for place, title, content in shown
        ),
    )


# ---- The top ---------------------------------------------------------------------------------------------------------


def _top(card: Card) -> str:
    counts = card["counts"]
    came, kept = counts["documents_in"], counts["documents_kept"]
    tiles = (
        (f"{came:,}", "documents came in"),
        (f"{kept:,}", f"documents were kept: {share(kept, came)}"),
        (size(counts["bytes_in"]), "of text came in"),
        (size(counts["bytes_kept"]), f"of text was kept: {share(counts['bytes_kept'], counts['bytes_in'])}"),
    )
    drawn = "".join(f"<li><b>{figure}</b><span>{what}</span></li>" for figure, what in tiles)
    facts = "".join(f"<dt>{title}</dt><dd>{fact}</dd>" for title, fact in _facts(card))
    return (
        f"<h1><small>Data card of curated text</small>{name(card['name'])}</h1>\n"
        f'<p class="lead">Text of {_many(len(counts["sources"]), "source")} in '
        f"{_many(len(counts['languages']), 'language')}: {kept:,} of {came:,} documents were kept.</p>\n"
        f'<ul class="tiles">{drawn}</ul>\n<dl>{facts}</dl>'
    )


def _facts(card: Card) -> Iterator[tuple[str, str]]:
    """What somebody who trains on it asks first."""
    counts, duplicates = card["counts"], card["duplicates"]
    certificate = card["contamination"]
    if certificate is None:
        yield "Benchmarks", "none were named, so none were kept out"
    else:
        found = sum(one["contaminated_items"]["clusters"] for one in certificate["benchmarks"].values())
        done = "the documents dropped" if certificate["action"] == "drop" else "cut out of the documents"
        yield (
            "Benchmarks",
            f"{_many(len(certificate['benchmarks']), 'benchmark')} looked for; "
            + (f"{_many(found, 'item')} found, and {done}" if found else "no item was found"),
        )
    yield "Duplicates", f"{duplicates['exact']:,} equal and {duplicates['near']:,} similar documents removed"
    items = sum(counts["scrubbed"].values())
    yield (
        "Personal data",
        f"{_many(items, 'item')} replaced in kept documents" if items else "none found in kept documents",
    )
    if (changed := card["changes"]) is None:
        yield "Last version", "none was named"
    else:
        before, now = changed["documents_kept"]
        yield "Last version", f"{change(before, now)} documents since <code>{text(changed['lineage'][:16])}</code>"
    yield "Lineage", f"<code>{text(card['lineage'])}</code>"


# ---- What went -------------------------------------------------------------------------------------------------------


def _funnel(card: Card, table: Tables) -> Iterator[str]:
    counts = card["counts"]
    came, kept = counts["documents_in"], counts["documents_kept"]
    stages: dict[str, list[Mapping[str, Any]]] = {stage: [] for stage in STAGES}
    for one in card["funnel"]:
        stages[REASONS[one["reason"]].stage].append(one)
    left, steps = came, [("Came in", _stage_bar(came, 0, came), Figure(""), came)]
    for stage, taken in stages.items():
        if documents := sum(one["documents"] for one in taken):
            steps.append(
                (stage, _stage_bar(left, documents, came), Figure(f"\N{MINUS SIGN}{documents:,}"), left - documents)
            )
            left -= documents
    steps.append(("Kept", _stage_bar(kept, 0, came), Figure(""), kept))
    yield table(
        "Documents by stage",
        ("stage", "", "removed", "left"),
        steps,
        Html('In the order of the decisions. <i class="key kept"></i> left, <i class="key taken"></i> removed.'),
        "chart",
    )
    if card["funnel"]:
        most = max(one["documents"] for one in card["funnel"])
        held = limits(card["thresholds"], card["config"])
        yield table.of_groups(
            "Documents by decision",
            ("decision", "documents", "of all", "text", ""),
            [(stage, [_decision(one, came, most, held) for one in taken]) for stage, taken in stages.items() if taken],
            "Each removed document counts once, under the first decision that was against it. Text is UTF-8 as it was "
            "extracted." + (" All but what is prohibited is in removed/ with its reason." if came > kept else ""),
            "said",
        )
    taken_bytes = sum(one["bytes"] for one in card["funnel"])
    if replaced := counts["bytes_in"] - taken_bytes - counts["bytes_kept"]:
        yield (
            f"<p>Of {size(counts['bytes_in'])} of text that came in, {size(taken_bytes)} went with documents and "
            f"{size(counts['bytes_kept'])} is kept. Placeholders for personal data, lines and passages that were cut "
            f"make {'up the rest:' if replaced > 0 else 'it longer by'} {size(abs(replaced))}.</p>"
        )


def _stage_bar(left: int, taken: int, whole: int) -> Html:
    """What was left before a stage, of which its last part is what the stage takes."""
    whole = max(whole, 1)
    return bar(("taken", left / whole if taken else 0), ("kept", (left - taken) / whole))


def _decision(one: Mapping[str, Any], came: int, most: int, held: Mapping[str, Sequence[Limit]]) -> tuple[Cell, ...]:
    reason, documents = one["reason"], one["documents"]
    allowed = f"; allowed: {_allowed(held[reason])}" if reason in held else ""
    said = Html(f"{text(REASONS[reason].says)}<br><small>{code(reason)}{allowed}</small>")
    taken = Figure("not kept") if reason == "prohibited" else size(one["bytes"])
    return said, documents, share(documents, came), taken, bar(("taken", documents / most))


def _allowed(of: Sequence[Limit]) -> str:
    return ", ".join(
        limit.allows.format(_value(limit.low))
        if limit.low == limit.high
        else f"{limit.allows.format(f'{_value(limit.low)} to {_value(limit.high)}')} by language"
        for limit in of
    )


# ---- What changed ----------------------------------------------------------------------------------------------------


def _changes(card: Card, table: Tables) -> Iterator[str]:
    changed = card["changes"]
    if changed is None:
        yield "<p>No version before this one was named.</p>"
        return
    (documents, documents_now), (before, now) = changed["documents_kept"], changed["bytes_kept"]
    yield table(
        "In all",
        ("kept", "before", "now", "difference"),
        [
            ("documents", documents, documents_now, change(documents, documents_now)),
            ("text", size(before), size(now), _size_change(before, now)),
        ],
        Html(f"The version before has the lineage <code>{text(changed['lineage'])}</code>."),
    )
    yield '<div class="pair">'
    for what in ("source", "language"):
        yield _differences(table, f"Kept documents by {what}", what, changed[f"{what}s"], name)
    yield "</div>"
    yield _differences(table, "Removed documents by decision", "decision", changed["dropped"], _reason)
    if config := changed["config"]:
        yield "<h3>Configuration</h3><ul>" + "".join(f"<li><code>{text(one)}</code></li>" for one in config) + "</ul>"
    else:
        yield "<p>The configuration is the same.</p>"


def _differences(
    table: Tables, caption: str, what: str, pairs: Mapping[str, Sequence[int]], shown: Callable[[str], Html]
) -> str:
    if not pairs:
        return f"<p>{caption}: no difference.</p>"
    return table(
        caption,
        (what, "before", "now", "difference"),
        [(shown(one), *pair, change(*pair)) for one, pair in list(pairs.items())[:_CHANGES]],
        f"The {_CHANGES} largest differences of {len(pairs)}." if len(pairs) > _CHANGES else "",
    )


def _size_change(before: int, now: int) -> Figure:
    sign = "+" if now >= before else "\N{MINUS SIGN}"
    return Figure(f"{sign}{size(abs(now - before))}")


def _reason(reason: str) -> Html:
    """A reason, of which an earlier version may have had others."""
    says = f"{text(REASONS[reason].says)}<br>" if reason in REASONS else ""
    return Html(f"{says}<small>{code(reason)}</small>")


# ---- What it is made of ----------------------------------------------------------------------------------------------


def _sources(card: Card, table: Tables) -> Iterator[str]:
    sources = card["counts"]["sources"]
    flat = {
        label: {**one["dropped"], **{key: count for key, count in one.items() if key != "dropped"}}
        for label, one in sources.items()
    }
    yield table(
        "Documents and text by source",
        ("source", "in", "kept", "share kept", "", "text in", "text kept", "most frequent reasons"),
        [
            (
                shown,
                one["documents_in"],
                one["documents_kept"],
                share(one["documents_kept"], one["documents_in"]),
                bar(("came", 1.0), ("kept", one["documents_kept"] / max(one["documents_in"], 1))),
                size(one["bytes_in"]),
                size(one["bytes_kept"]),
                _most_frequent(one),
            )
            for shown, one in first(flat)
        ],
    )


def _most_frequent(counts: Mapping[str, int]) -> Html:
    reasons = sorted(counts.keys() & REASONS.keys(), key=lambda reason: (-counts[reason], reason))
    return Html("<br>".join(f"<small>{code(one)} {counts[one]:,}</small>" for one in reasons[:3]))


def _languages(card: Card, table: Tables) -> Iterator[str]:
    kept_bytes = card["counts"]["bytes_kept"]
    yield table(
        "Documents and text by language",
        ("language", "in", "kept", "share kept", "", "text kept", "of all kept text"),
        [
            (
                code,
                one["documents_in"],
                one["documents_kept"],
                share(one["documents_kept"], one["documents_in"]),
                bar(("came", 1.0), ("kept", one["documents_kept"] / max(one["documents_in"], 1))),
                size(one["bytes_kept"]),
                share(one["bytes_kept"], kept_bytes),
            )
            for code, one in first(card["languages"])
        ],
        "ISO 639-1 as CLD2 finds them; und: no language found, or dropped before it was looked for.",
    )


def _licenses(card: Card, table: Tables) -> Iterator[str]:
    kept, kept_bytes = card["counts"]["documents_kept"], card["counts"]["bytes_kept"]
    yield table(
        "Kept documents by licence",
        ("licence", "documents", "of all", "text", "of all text"),
        [
            (
                licence,
                one["documents"],
                share(one["documents"], kept),
                size(one["bytes"]),
                share(one["bytes"], kept_bytes),
            )
            for licence, one in first(card["licenses"])
        ],
        "As the documents or their sources state them.",
    )


def _lengths_and_quality(card: Card, table: Tables) -> Iterator[str]:
    came, kept = card["lengths"]["in"], card["lengths"]["kept"]
    most = max([*came.values(), *kept.values(), 1])
    yield '<div class="pair">'
    yield table(
        "Documents by length",
        ("UTF-8 bytes from", "", "in", "kept"),
        [
            (
                _power(power),
                bar(("came", came.get(power, 0) / most), ("kept", kept.get(power, 0) / most)),
                came.get(power, 0),
                kept.get(power, 0),
            )
            for power in _powers({*came, *kept})
        ],
        Html('Up to the next row. <i class="key came"></i> came in, <i class="key kept"></i> kept.'),
        "chart",
    )
    if quality := card["quality"]:
        scored, documents = sum(quality.values()), card["counts"]["documents_kept"]
        unscored = f" {documents - scored:,} have none." if documents > scored else ""
        tenths = [f"{n / 10:.1f}" for n in range(11)]
        yield table(
            "Kept documents by quality",
            ("score", "", "documents", "of all"),
            [
                (score, bar(("kept", quality.get(score, 0) / max(quality.values()))), quality.get(score, 0),
                 share(quality.get(score, 0), documents))
                for score in reversed(tenths)
            ],
            f"{_quality(card)} Rounded to one decimal.{unscored}",
            "chart",
        )  # fmt: skip
    yield "</div>"
    if not quality:
        yield "<p>No document has a score of quality.</p>"


def _quality(card: Card) -> str:
    if "quality" in card["classifiers"]:
        return "How probably a document is like the good ones that were named, by the classifier below."
    if card["config"].get("quality", {}).get("model"):
        return "How probably a document is like good ones, by a classifier that an earlier curation trained."
    return (
        "The share of Gopher's rules that hold with limits twice as strict: a distance from the limits, not a verdict "
        "on the writing."
    )


def _powers(present: Iterable[str]) -> list[str]:
    """Every bin from the smallest to the largest, those without documents too."""
    numbers = sorted(int(power) for power in present)
    above = [number for number in numbers if number]
    bins = [1 << n for n in range(above[0].bit_length() - 1, above[-1].bit_length())] if above else []
    return [str(number) for number in ([0] if 0 in numbers else []) + bins]


def _power(power: str) -> Figure:
    """1024 -> 1 Ki."""
    number = int(power)
    for unit, of in ((1 << 30, " Gi"), (1 << 20, " Mi"), (1 << 10, " Ki")):
        if number >= unit:
            return Figure(f"{number // unit}{of}")
    return Figure(str(number))


def _duplicates(card: Card, table: Tables) -> Iterator[str]:
    duplicates, lines = card["duplicates"], card["lines"]
    yield (
        f"<p>{duplicates['exact']:,} documents had the same text as one that stays, and {duplicates['near']:,} nearly "
        "the same: they were removed.</p>"
    )
    if earlier := duplicates.get("earlier"):
        yield f"<p>Compared with earlier collections, too: {', '.join(map(name, earlier))}.</p>"
    if lines["documents"]:
        yield (
            f"<p>{lines['characters']:,} characters of lines and paragraphs that many documents hold were cut out of "
            f"{_many(lines['documents'], 'kept document')}.</p>"
        )
    if clusters := duplicates["clusters"]:
        most = max(clusters.values())
        yield table(
            "Kept documents by how many they stand for",
            ("documents", "", "kept documents"),
            [(_span(power), bar(("kept", count / most)), count) for power, count in clusters.items()],
            "Themselves and the duplicates that were removed for them; the others stand for themselves alone.",
            "chart",
        )


def _span(power: str) -> Figure:
    number = int(power)
    return Figure(f"{number:,} to {2 * number - 1:,}")


def _private(card: Card, table: Tables) -> Iterator[str]:
    items, documents = card["counts"]["scrubbed"], card["scrubbed_documents"]
    if not any(items.values()):
        yield "<p>None was found in the kept documents.</p>"
        return
    yield table(
        "Items replaced in kept documents",
        ("kind", "items", "documents with any", "of all"),
        [
            (SCRUBBED[kind], items[kind], documents[kind], share(documents[kind], card["counts"]["documents_kept"]))
            for kind in KINDS
        ],
        "Found by form and by what makes a number valid. The items themselves are not stored.",
    )


# ---- Benchmarks and classifiers --------------------------------------------------------------------------------------


def _contamination(card: Card, table: Tables) -> Iterator[str]:
    certificate = card["contamination"]
    if certificate is None:
        yield "<p>No benchmarks were named: this text may hold any of them.</p>"
        return
    done = {
        "drop": "Documents that hold an item were removed.",
        "cut": "Items were cut out of the documents that hold them; where too little was left, those were removed.",
    }[certificate["action"]]
    yield f"<p>{done} {_method(certificate['method'])}</p>"
    yield table(
        f"Items found in {certificate['documents']:,} documents",
        (
            "benchmark",
            "items",
            "found",
            "fraction",
            "",
            "with the answer",
            "documents",
            "documents with a run",
            "fields that were read",
        ),
        [
            (
                name(benchmark),
                one["items"],
                one["contaminated_items"]["clusters"],
                share(one["contaminated_items"]["clusters"], one["items"]),
                bar(("came", 1.0), ("taken", one["contaminated_fraction"])),
                one["contaminated_items"]["answered"],
                one["contaminated_documents"]["clusters"],
                one["contaminated_documents"]["runs"],
                Html(f"<bdi>{text(one['fields'])}</bdi>"),
            )
            for benchmark, one in certificate["benchmarks"].items()
        ],
        "An item counts once, however many documents hold it.",
        "benchmarks",
    )
    yield (
        "<p>The certificate travels with the data, and names each file of a benchmark by its SHA-256. Its own is "
        f"<code>{text(certificate['sha256'])}</code>.</p>"
    )


def _method(method: Mapping[str, Any]) -> str:
    """In words."""
    runs = f" Runs of {method['run']} words that an item holds are counted as well." if method["run"] else ""
    return (
        f"A question is found by its runs of {method['gram']} words, compared by letters alone and weighted by how few "
        f"questions hold them. One of up to {method['whole']} words must stand there whole; of one of {method['long']} "
        f"and more, {100 * method['score']:.0f} % of the weight is enough. One that anybody might ask counts with an "
        f"answer within {method['distance']} words only.{runs}"
    )


def _classifiers(card: Card, table: Tables) -> Iterator[str]:
    reports = card["classifiers"]
    if not reports:
        yield "<p>None was trained for this text.</p>"
        return
    yield table(
        "Measured on documents that were held out of training",
        ("classifier", "trained on", "held out", "accuracy", "majority alone", "AUC", "calibration error"),
        [
            (
                title,
                sum(report["documents"]["training"].values()),
                sum(report["documents"]["held_out"].values()),
                *(
                    Figure(f"{report['held_out'][key]:.4f}")
                    for key in ("accuracy", "majority", "auc", "calibration_error")
                ),
            )
            for title, report in reports.items()
        ],
        "Calibration error: how far probabilities are from the shares that they foretell, on average.",
    )
    for title, report in reports.items():
        yield '<div class="pair">'
        yield table(
            f"What probabilities of {title} mean",
            ("probability from", "documents held out", "mean probability", "share that is so"),
            [
                (
                    Figure(f"{one['from']:.1f}"),
                    one["documents"],
                    Figure(f"{one['mean']:.3f}"),
                    Figure(f"{one['share']:.3f}"),
                )
                for one in report["held_out"]["calibration"]
            ],
        )
        yield table(
            f"What {title} was learned from",
            ("source", "kind", "documents", "held out", "of these told rightly"),
            [
                (name(one["source"]), "positive" if one["positive"] else "negative", one["documents"], one["held_out"],
                 share(one["right"], one["held_out"]))
                for one in report["sources"]
            ],
        )  # fmt: skip
        yield "</div>"


# ---- Rules -----------------------------------------------------------------------------------------------------------


def _thresholds(card: Card, table: Tables) -> Iterator[str]:
    thresholds = card["thresholds"]
    if not thresholds:
        yield "<p>No rules were asked.</p>"
        return
    groups = [
        (set_name, _limits(kind, {language: sets.get(set_name) for language, sets in thresholds.items()}))
        for set_name, kind in SETS.items()
    ]
    yield table.of_groups(
        "Limits by rule set",
        ("limit", "every language", "but in"),
        groups,
        "A document that meets a limit exactly keeps it.",
        "keys",
    )
    if calibrated := card.get("calibrated"):
        taken = ", ".join(f"{text(language)} {count:,}" for language, count in calibrated.items())
        yield f"<p>Limits were taken from so many reference documents of a language: {taken}.</p>"


def _limits(kind: type[Any], of: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[Cell, ...]]:
    """Rows of a rule set: each limit as most languages have it, and the languages that have another."""
    if not any(of.values()):
        return [("every limit", Figure("off"), "")]
    rows: list[tuple[Cell, ...]] = []
    for field in dataclasses.fields(kind):
        values = {language: _value(None if limits is None else limits[field.name]) for language, limits in of.items()}
        usual = values.pop(OTHERS, "–")
        others: dict[str, list[str]] = {}
        for language, value in values.items():
            if value != usual:
                others.setdefault(value, []).append(language)
        differing = "; ".join(f"{value} in {text(', '.join(languages))}" for value, languages in others.items())
        rows.append((code(field.name), Figure(usual), Html(differing)))
    return rows


def _value(limit: float | bool | None) -> str:
    if limit is None or isinstance(limit, bool):
        return {None: "off", True: "yes", False: "no"}[limit]
    return f"{limit:,.15g}"


def _signals(card: Card, table: Tables) -> Iterator[str]:
    if signals := card.get("signals"):
        yield table(
            "One document in ten is below the first figure, half are below the second, nine in ten below the third",
            ("signal", "10 %", "50 %", "90 %"),
            [
                (
                    Html(
                        f"<code>{text(column)}</code>"
                        + (f"<br><small>{text(COLUMNS[column].meaning)}</small>" if column in COLUMNS else "")
                    ),
                    *(Figure(f"{value:,.4g}") for value in values),
                )
                for column, values in signals.items()
            ],
            kind="said",
        )


# ---- Samples and configuration ---------------------------------------------------------------------------------------


def _samples(card: Card, table: Tables) -> Iterator[str]:
    if not card["samples"]:
        return
    yield (
        "<p>Up to five documents of each decision, by the hash of their ids, with the beginning of their text after "
        "personal data was replaced. Of decisions about harm no text is shown.</p>"
    )
    for outcome, shown in card["samples"].items():
        title = "Kept" if outcome == KEPT else f"{text(REASONS[outcome].says)} {code(outcome)}"
        lines = "".join(
            f"<li><code>{name(one['id'])}</code>"
            + (f'<p dir="auto">{text(one["excerpt"])}</p>' if one["excerpt"] else "")
            + "</li>"
            for one in shown
        )
        yield f'<h3>{title}</h3>\n<ul class="samples">{lines}</ul>\n'


def _configuration(card: Card, table: Tables) -> Iterator[str]:
    yield table(
        "Keys that this text depends on",
        ("key", "value"),
        [(code(key), Html(f"<code>{text(value)}</code>")) for key, value in _keys(card["config"])],
        kind="keys",
    )


def _keys(value: Any, path: str = "curate") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values; of sources those keys only that are set."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _keys(inner, f"{path}.{key}")
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for n, one in enumerate(value):
            yield f"{path}[{n}]", ", ".join(f"{key}: {_plain(inner)}" for key, inner in one.items() if inner)
    else:
        yield path, _plain(value)


def _plain(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _many(count: int, what: str) -> str:
    """1 source, 2 sources."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"

"""Near-duplicates: speed against datatrove, what is found of what it finds and of what was planted, and scaling.

Both read the same jsonl files of the corpus that GEMCUTTER_CORPUS names and write the documents that stay, with
FineWeb's 14 bands of 8 rows, ours also with its own: signatures, clusters and the filter, from start to end.
Contestants and rounds are as `rounds.py` has them; figures are medians of the rounds. Found are, of the pairs of
datatrove's second stage that are 0.8 similar by its own shingles, those of which we keep one at most. Planted are pairs
of documents with words substituted, inserted and deleted, at similarities that plain sets of words tell. Scaled are
documents with copies of them in which words are exchanged; ranges are so small that every step has many.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.duplicates import minhash, steps
from data_pipeline.duplicates.minhash import Shingling
from data_pipeline.signals.tokens import Tokens
from tests.bench import corpus
from tests.bench.loader import Contestant, own_environment
from tests.bench.report import Report, Row, compare
from tests.bench.rounds import add_part, interleaved, once
from tests.data_pipeline.duplicates_tasks import VOCABULARY, edited, jaccard, planted, sentence

DATATROVE = Contestant("datatrove", "tests.bench.peers.datatrove_minhash", own_environment("datatrove"), "datatrove")

# English and others, natural and machine-made, with copies of one text in several forms.
PACKAGES = (
    "debian-reference-en", "dict-jargon", "fortunes", "fortunes-min", "git-doc", "gnome-user-docs",
    "installation-guide-amd64", "jargon-text", "manpages-dev", "python3.11-doc",
)  # fmt: skip
SCALED = ("debian-history", "git-doc", "manpages-dev", "python3.11-doc")
FINEWEB, OURS = (14, 8), (Shingling().bands, Shingling().rows)
SCALED_RANGE_BYTES = 2**19
FILE_BYTES = 16_000_000


def bench(runs: Path, options: Sequence[str]) -> Report:
    """All figures of near-duplicates."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench dedup", description=__doc__)
    parser.add_argument("--packages", nargs="*", default=PACKAGES, help="of the corpus")
    add_part(parser, PARTS)
    parser.add_argument("--rounds", type=int, default=2, help="of speed")
    chosen = parser.parse_args(options)
    report = Report("dedup", {"packages": list(chosen.packages), "rounds": chosen.rounds})
    for name in chosen.part or PARTS:
        report.rows += PARTS[name](runs / "dedup", chosen, report)
    return report


def speed(runs: Path, chosen: argparse.Namespace, report: Report) -> list[Row]:
    """From documents to documents that stay, beside datatrove."""
    documents, peer = runs / "documents", runs / "datatrove"
    tasks = write_documents(documents, _lines(chosen.packages))
    warm_up(runs)
    ours = [
        (_contestant(bands, rows), _arguments(documents, runs / f"ours-{bands}", bands, rows, steps.RANGE_BYTES))
        for bands, rows in (FINEWEB, OURS)
    ]
    found = interleaved([*ours, (DATATROVE, [str(documents), str(peer), str(tasks)])], chosen.rounds, report)
    report.details |= found
    fineweb, own = (found.get(contestant.label, []) for contestant, _ in ours)
    them = found.get(DATATROVE.label, [])
    if own:
        report.work |= {"documents": own[0]["documents"], "characters": own[0]["characters"]}
    rows = []
    for label, name in (("s", "seconds"), ("s of processors", "cpu_seconds")):
        rates = [
            statistics.median(own[0]["characters"] / one[name] for one in results) if own and results else None
            for results in (fineweb, own, them)
        ]
        peers = {"datatrove": rates[2]} if rates[2] is not None else {}
        rows.append(compare(f"characters/{label}, 14 x 8", rates[0], peers, 15))
        rows.append(compare(f"characters/{label}, {OURS[0]} x {OURS[1]}", rates[1], peers))
    if them:
        pairs = np.load(peer / "pairs.npy")
        for bands, _ in (FINEWEB, OURS):
            counts = recall(pairs, np.load(runs / f"ours-{bands}" / "removed.npy"))
            report.details[f"pairs of datatrove, {bands} bands"] = counts
            rows.append(of_pairs(f"recall of its pairs of 0.8 and more, {bands} bands", **counts["of 0.8 and more"]))
    return rows


def of_pairs(figure: str, *, pairs: int, found: int) -> Row:
    """The share of pairs that was found; not measured where there are none."""
    return _bar(figure, found / pairs, 0.99) if pairs else Row(figure, None, {}, None, 0.99, None)


def warm_up(runs: Path) -> None:
    """Compile what is not compiled yet, which is kept on disk."""
    folder = runs / "warm-up"
    text = " ".join(sentence(random.Random(0), 100))
    write_documents(folder, iter([json.dumps({"text": text + end}).encode() + b"\n" for end in ("", " end")]))
    for most in (500, steps.RANGE_BYTES):
        _ours(folder, runs / "ours-warm-up", *FINEWEB, most)


def recall(pairs: np.ndarray, removed: np.ndarray) -> dict[str, dict[str, int]]:
    """How many of datatrove's pairs of some similarity there are, and of how many we keep one at most."""
    numbers = (pairs[:, [0, 2]].astype(np.uint64) << np.uint64(32)) + pairs[:, [1, 3]].astype(np.uint64)
    found = np.isin(numbers, removed["key"]).any(1)
    classes = {"of 0.8 and more": (0.8, 2.0), "of 0.75 to 0.8": (0.75, 0.8), "of less": (-1.0, 0.75)}
    similar = pairs[:, 4]
    return {
        name: {
            "pairs": int(((similar >= low) & (similar < high)).sum()),
            "found": int((found & (similar >= low) & (similar < high)).sum()),
        }
        for name, (low, high) in classes.items()
    }


def planted_pairs(runs: Path, _: argparse.Namespace, report: Report) -> list[Row]:
    """Pairs with edited words: what is found of the similar ones, and what is taken of others."""
    draw = random.Random(1)
    texts: list[str] = []
    for low, high in ((0.85, 0.95), (0.45, 0.6)):
        texts += [" ".join(words) for pair in planted(draw, 2000, low, high) for words in pair]
    folder = runs / "planted"
    write_documents(folder, (json.dumps({"text": text}).encode() + b"\n" for text in texts))
    out = runs / "ours-planted"
    _ours(folder, out, *OURS, steps.RANGE_BYTES)
    starts = [0]
    for path in sorted(folder.iterdir()):
        starts.append(starts[-1] + path.read_bytes().count(b"\n"))
    keys = np.load(out / "removed.npy")["key"]
    rows = np.array(starts)[(keys >> np.uint64(32)).astype(int)] + (keys & np.uint64(2**32 - 1)).astype(int)
    gone = np.zeros(len(texts), bool)
    gone[rows] = True
    alike, unlike = gone.reshape(2, -1, 2).any(2)
    report.details["candidates by similarity"] = probabilities()
    return [
        _bar("planted pairs of 0.85 and more that are removed", float(alike.mean()), 0.98),
        _bar("planted pairs of 0.6 and less that are kept", float(1 - unlike.mean()), 0.99),
    ]


def probabilities() -> dict[str, dict[str, float]]:
    """How often two documents about so similar become candidates, of 1,000 pairs each."""
    draw, found = random.Random(2), {}
    for similarity in (0.75, 0.8, 0.85, 0.9):
        pairs = []
        while len(pairs) < 1000:
            one = sentence(draw, 300)
            other = edited(draw, one, similarity)
            if abs(jaccard(one, other) - similarity) < 0.005:
                pairs.append((one, other))
        tokens = Tokens.of([" ".join(words) for pair in pairs for words in pair])
        found[str(similarity)] = {}
        for bands, rows in (FINEWEB, (16, 7), (20, 6)):
            keys_DB = minhash.measure(tokens, Shingling(bands=bands, rows=rows)).keys_DB
            found[str(similarity)][f"{bands} x {rows}"] = float((keys_DB[::2] == keys_DB[1::2]).any(1).mean())
    return found


def scaling(runs: Path, _: argparse.Namespace, report: Report) -> list[Row]:
    """Documents beside 0, 3 and 15 copies of each with one word in 100 exchanged, nine tenths similar."""
    warm_up(runs)
    lines = list(_lines(SCALED))
    figures = {}
    for times in (1, 4, 16):
        folder = runs / f"copies-{times}"
        write_documents(folder, (line for copy in range(times) for line in _perturbed(lines, copy)))
        figures[times] = _ours(folder, runs / f"ours-copies-{times}", *OURS, SCALED_RANGE_BYTES)
        shutil.rmtree(folder)
    report.details["scaling"] = {str(times): figure for times, figure in figures.items()}
    cost = {
        name: {times: figure[key] / (figure["characters"] if per else 1) for times, figure in figures.items()}
        for name, key, per in (
            ("time per character", "seconds", True),
            ("processor time per character", "cpu_seconds", True),
            ("peak memory of a worker", "peak_bytes", False),
        )
    }
    return [
        _bar(f"{name}, {times} x over 1 x", values[times] / values[1], 1.2, at_most=True)
        for name, values in cost.items()
        for times in (4, 16)
    ]


def write_documents(folder: Path, lines: Iterator[bytes]) -> int:
    """Write jsonl files of about FILE_BYTES; returns how many."""
    _empty(folder)
    count, size, file = 0, FILE_BYTES, None
    for line in lines:
        if size >= FILE_BYTES:
            if file is not None:
                file.close()
            file, size, count = (folder / f"{count:05d}.jsonl").open("wb"), 0, count + 1
        assert file is not None
        file.write(line)
        size += len(line)
    if file is not None:
        file.close()
    return count


def _lines(packages: Sequence[str]) -> Iterator[bytes]:
    """Texts that are not blank: datatrove does not count the others."""
    for package in packages:
        for document in corpus.of_source(package):
            yield json.dumps({"id": document.id, "text": document.text}).encode() + b"\n"


def _perturbed(lines: Sequence[bytes], copy: int) -> Iterator[bytes]:
    draw = random.Random(copy)
    for line in lines:
        record = json.loads(line)
        words = record["text"].split(" ")
        if copy:
            for at in range(draw.randrange(100), len(words), 100):
                words[at] = draw.choice(VOCABULARY)
        record["text"] = " ".join(words)
        yield json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _contestant(bands: int, rows: int) -> Contestant:
    return Contestant("ours", "tests.bench.ours_dedup", Path(sys.executable), None, f"{bands} x {rows}", kind="ours")


def _arguments(documents: Path, out: Path, bands: int, rows: int, most: int) -> list[str]:
    return [str(documents), str(out), *map(str, (1, bands, rows, most))]


def _ours(documents: Path, out: Path, bands: int, rows: int, most: int) -> dict[str, Any]:
    return once(_contestant(bands, rows), _arguments(documents, out, bands, rows, most))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _bar(figure: str, ours: float, bar: float, *, at_most: bool = False) -> Row:
    """A figure with a bar of its own, not one relative to peers."""
    return Row(figure, ours, {}, None, bar, ours <= bar if at_most else ours >= bar)


PARTS: dict[str, Callable[[Path, argparse.Namespace, Report], list[Row]]] = {
    "planted": planted_pairs,
    "scaling": scaling,
    "speed": speed,
}

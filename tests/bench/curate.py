"""Curation against others, part by part; `--part NAME` runs one, all without.

    rules      Gopher's rules of quality and repetition, FineWeb's and C4's: characters per second of one core, ours
               against datatrove's chain of the same, on the same English documents of the corpus
    pipeline   the whole job over the corpus, and again with other limits (`whole.py`)
    scaling    the whole job over 1, 4 and 16 perturbed copies of documents (`whole.py`)
    memory     the whole job over input that is made to hurt (`hostile.py`)

In `rules` contestants and rounds are as `rounds.py` has them. Figures are medians of the rounds. Texts are
in memory: what is measured is the work per character, neither disk nor start. What a contestant drops at its first
filter is not shown to its others, as in a pipeline; ours counts every signal of every document all the same.

Reached on two cores of a shared machine, 2026-11-26 (medians of 5 rounds): rules 65 times datatrove's chain (13.2 M
characters/s and 0.204), 68 times in CPU time (24.7 and 0.365); bar 15: met. Of 584 documents ours drops 521 and the
chain 516: there FineWeb's rules see what C4's edits left, here the text as it came.

Where our time goes, of about 45 ns a character there: tokens, repetition, C4 and RefinedWeb a quarter to a fifth each,
Gopher's quality 2 ns and FineWeb less than one. Tried: functions that are given arrays, in the loops over characters;
numba counts references at each call, and tokenising took three times as long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import corpus, hostile, whole
from tests.bench.loader import Contestant, own_environment
from tests.bench.report import Report, compare
from tests.bench.rounds import add_part, interleaved

BAR_RULES = 15.0
LONGEST = 100_000  # characters of a document, so that a few long ones do not make up the sample

OURS = Contestant("ours", "tests.bench.ours_rules", Path(sys.executable), None, kind="ours")
DATATROVE = Contestant("datatrove", "tests.bench.peers.datatrove", own_environment("datatrove"), "datatrove")


def bench(runs: Path, options: Sequence[str]) -> Report:
    """Measure what the options ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench curate", description=__doc__)
    add_part(parser, PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a contestant in a round, at least")
    parser.add_argument("--characters", type=int, default=1_000_000, help="of the documents that are judged")
    parser.add_argument("--workers", type=int, nargs="*", default=(2, 1), help="of the whole, one after another")
    chosen = parser.parse_args(options)
    report = Report("curate", {})
    for name in chosen.part or PARTS:
        PARTS[name](runs / "curate", chosen, report)
    return report


def rules(folder: Path, chosen: argparse.Namespace, report: Report) -> None:
    """The rules that judge one document."""
    texts = corpus.english(chosen.characters, LONGEST)
    file = folder / "texts.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(text) + "\n" for text in texts))
    report.work["rules"] = {
        "documents": len(texts), "characters": sum(map(len, texts)), "longest": LONGEST, "rounds": chosen.rounds,
        "cores": 1, "statistic": "median of the rounds",
    }  # fmt: skip
    arguments = ["read", str(file), str(chosen.seconds)]
    found = interleaved([(one, arguments) for one in (OURS, DATATROVE)], chosen.rounds, report)
    for unit, key in (("s", "seconds"), ("CPU s", "cpu_seconds")):
        medians = {
            name: statistics.median(result["characters"] / result[key] for result in results)
            for name, results in found.items()
        }
        own = medians.pop("ours", None)
        report.rows.append(compare(f"rules, characters/{unit}", own, medians, BAR_RULES))
    for name, results in found.items():
        report.details[f"rules, {name}"] = {
            "settings": results[0]["settings"],
            "dropped": results[0]["dropped"],
            "characters_per_second": [result["characters"] / result["seconds"] for result in results],
        }


PARTS: dict[str, Callable[[Path, argparse.Namespace, Report], None]] = {
    "rules": rules,
    "pipeline": whole.pipeline,
    "scaling": whole.scaling,
    "memory": hostile.memory,
}

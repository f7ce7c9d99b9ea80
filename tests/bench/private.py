"""Personal data and secrets: what is found of planted values, which look-alikes are altered, and how fast.

Values and look-alikes come from a seed (`tests/data_pipeline/planted.py`): other seeds than the tests'. The bars are
recall per kind, the share of look-alikes altered at most, and characters a second on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from data_pipeline.harm import words
from data_pipeline.harm.prohibited import Lexicon
from data_pipeline.private.found import KINDS
from data_pipeline.private.scrub import scrub
from tests.bench.report import Report, Row
from tests.data_pipeline.look_alikes import LOOK_ALIKES, look_alikes
from tests.data_pipeline.planted import planted

FEWEST_FOUND, MOST_ALTERED, FEWEST_CHARACTERS = 0.97, 0.01, 10e6
KEY = b"the key of a benchmark"


def bench(runs: Path, arguments: Sequence[str]) -> Report:
    """Plant, scrub and count."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench private", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="values of each kind; twice as many look-alikes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=16, help="of so many documents of the corpus one is scrubbed")
    options = parser.parse_args(arguments)
    rows = [_recall(kind, options.count, options.seed) for kind in KINDS]
    altered = Counter(
        one.kind for one in look_alikes(2 * options.count, options.seed) if scrub(one.text).text != one.text
    )
    share = sum(altered.values()) / (2 * options.count)
    rows.append(Row("look-alikes altered", share, {}, None, MOST_ALTERED, share <= MOST_ALTERED))
    texts = list(_texts(Path(os.environ["GEMCUTTER_CORPUS"]) / "text", options.every))
    characters = sum(map(len, texts))
    counts: Counter[str] = Counter()
    begin = time.process_time()
    for text in texts:
        counts.update(scrub(text, key=KEY).counts)
    speed = characters / (time.process_time() - begin)
    rows.append(Row("scrubbing, characters/s/core", speed, {}, None, FEWEST_CHARACTERS, speed >= FEWEST_CHARACTERS))
    english, lexicon = words.packaged("en"), Lexicon.packaged("en")
    assert english is not None
    assert lexicon is not None
    for figure, count in (
        ("word list, characters/s/core", english.count),
        ("lexicon, characters/s/core", lexicon.holds),
    ):
        begin = time.process_time()
        for text in texts:
            count(text)
        rows.append(Row(figure, characters / (time.process_time() - begin), {}, None, None, None))
    return Report(
        "private",
        {"values of each kind": options.count, "seed": options.seed, "kinds of look-alikes": len(LOOK_ALIKES)},
        rows,
        details={
            "look-alikes altered by kind": dict(altered.most_common()),
            "corpus": {"characters": characters, "documents": len(texts), "items by kind": dict(counts.most_common())},
        },
    )


def _recall(kind: str, count: int, seed: int) -> Row:
    documents = planted(kind, count, seed)
    found = sum(one.is_found(scrub(one.text, key=KEY)) for one in documents) / count
    return Row(f"recall: {kind}", found, {}, None, FEWEST_FOUND, found >= FEWEST_FOUND)


def _texts(folder: Path, every: int) -> Iterator[str]:
    """One of so many documents, of every file."""
    number = 0
    for path in sorted(folder.glob("*.jsonl.zst")):
        with path.open("rb") as file:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
                number += 1
                if number % every == 0:
                    yield json.loads(line)["text"]

"""Pages of the corpus to text: `python -m tests.bench.ours_reading [ARCHIVE] [PAGES]`.

Prints pages and characters per second of the processor, in this process and in one apart under limits, the same pages
in turn, the best of three rounds; and which share of the pages each extractor won.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from data_pipeline.document import Record
from data_pipeline.extract import Apart, Outcome
from data_pipeline.extract.apart import read_here
from data_pipeline.sources import formats

ROUNDS = 3
CHUNK = 256  # records that a worker has at a time


def pages(archive: str, most: int) -> list[Record]:
    path = Path(os.environ["GEMCUTTER_CORPUS"]) / "html" / archive
    records = [record for piece in formats.slices(path, archive) for record in formats.records(piece, "text")]
    return [record for record in records if not record.reason][:most]


def here(records: list[Record]) -> list[Outcome]:
    return [read_here(record) for record in records]


def apart(records: list[Record]) -> list[Outcome]:
    """In a child that is started and ended on the way."""
    with closing(Apart()) as reader:
        chunks = (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
        return [outcome for chunk in chunks for outcome in reader.read_all(chunk)]


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(archive: str = "pages-00002.warc.gz", most: str = "2000") -> None:
    records = pages(archive, int(most))
    here(records[:100])  # loads the libraries
    seconds: dict[str, list[tuple[float, float]]] = {"here": [], "apart": []}
    outcomes: dict[str, list[Outcome]] = {}
    for _ in range(ROUNDS):
        for name, work in (("here", here), ("apart", apart)):
            clock, processor = time.perf_counter(), processor_seconds()
            outcomes[name] = work(records)
            seconds[name].append((processor_seconds() - processor, time.perf_counter() - clock))
    assert outcomes["here"] == outcomes["apart"]
    found = [outcome.extracted for outcome in outcomes["here"] if outcome.extracted]
    size, characters = sum(len(record.content) for record in records), sum(len(one.text) for one in found)
    print(f"{len(records)} pages, {size / 1e6:.1f} MB of HTML, {characters / 1e6:.1f} M characters of text")
    for name, taken in seconds.items():
        processor, clock = (min(column) for column in zip(*taken, strict=True))
        print(
            f"{name}: {len(records) / processor:.0f} pages, {size / processor / 1e6:.1f} MB of HTML, "
            f"{characters / processor / 1e6:.2f} M characters per processor second; {len(records) / clock:.0f} pages/s"
        )
    for extractor, won in Counter(one.extractor for one in found).most_common():
        print(f"{extractor}: {won} pages, {won / len(found):.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Curations of input that is made to hurt: part `memory` of `curate.py`.

Each is one source among good documents, a job with two workers of its own; what is measured is the plain resident
memory of the worker that had most of it, and what the job cost. Benchmarks are indexed before.

Reached on two cores of a shared machine, 2026-11-26, in GB (bar 2: met by all): good documents alone 0.87, of which
0.24 are the index of benchmarks that all map; a line, a text file and a cell of Parquet of 500 MB 0.87 each; 200,000
documents 1.04; 15 MB of Latin letters 1.32, of ideographs 1.22, without a blank 1.20.

A cell that is alone in its row group is told by what the file says of that group. One among other rows is read:
pyarrow then holds it four times, 2.3 GB with what a process begins with (as it lies in the file, decompressed, in the
dictionary, in the array). The lexicon of what is prohibited made a list of one string each of ideographs, and of pairs
and more: 1.26 GB and half the time; it goes through long texts in pieces now.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import corpus
from tests.bench.report import Report
from tests.bench.whole import BAR_BYTES, bar, curate, warm_up

HUGE = 500_000_000  # bytes of a document that is too large
LARGEST = 15_000_000  # bytes of a document just below `extract.largest_bytes`, when it is escaped in its line
TINY = 200_000  # documents
GOOD = "debian-faq"  # package of the corpus
LATIN, CJK = ("debian-handbook", "en"), ("manpages-ja", "ja")  # packages, and what their paths state
_PIECE = 1_000_000


def memory(folder: Path, _: argparse.Namespace, report: Report) -> None:
    """One job for each of `CASES`, and one of the good documents alone."""
    folder /= "memory"
    good = corpus.root() / "text" / f"{GOOD}.jsonl.zst"
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    warm_up(folder, f"curate.work={work.absolute()}")  # indexes the benchmarks, too
    report.work["memory"] = {"huge_bytes": HUGE, "largest_bytes": LARGEST, "tiny_documents": TINY}
    for name, make in (("good documents alone", None), *CASES.items()):
        hostile = folder / "hostile"
        shutil.rmtree(hostile, ignore_errors=True)
        hostile.mkdir()
        if make is not None:
            make(hostile)
        paths = [good, *hostile.iterdir()]
        found = curate(folder, "text", paths, 2, f"curate.work={work.absolute()}")
        report.details[f"memory, {name}"] = found.details()
        report.rows.append(
            bar(f"peak bytes of a worker: {name}", found.watched.peaks()["worker"], BAR_BYTES, at_most=True)
        )
        shutil.rmtree(hostile)
    shutil.rmtree(work)


def _huge_line(folder: Path) -> None:
    with (folder / "line.jsonl").open("w") as file:
        file.write('{"text": "')
        for piece in _pieces(HUGE):
            file.write(piece)
        file.write('"}\n')


def _huge_file(folder: Path) -> None:
    with (folder / "file.txt").open("w") as file:
        for piece in _pieces(HUGE):
            file.write(piece)


def _huge_cell(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["".join(_pieces(HUGE))]}), folder / "cell.parquet")


def _tiny(folder: Path) -> None:
    draw = random.Random(0)
    with (folder / "tiny.jsonl").open("w") as file:
        for _ in range(TINY):
            file.write(json.dumps({"text": "".join(draw.choices(string.ascii_lowercase + " ", k=30))}) + "\n")


def _no_blanks(folder: Path) -> None:
    _write(folder, "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=LARGEST)))


def _of_corpus(package: str, language: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        """One document of many, over and over where they are not enough."""
        texts = [document.text for document in corpus.of_source(package) if document.hint in (language, "")]
        whole = "\n\n".join(texts).encode()
        _write(folder, (whole * (LARGEST // len(whole) + 1))[:LARGEST].decode(errors="ignore"))

    return make


def _write(folder: Path, text: str) -> None:
    (folder / "large.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")


def _pieces(size: int) -> Iterator[str]:
    """Letters and blanks."""
    piece = "".join(random.Random(0).choices(string.ascii_lowercase + " ", k=_PIECE))
    for at in range(0, size, _PIECE):
        yield piece[: size - at]


CASES: dict[str, Callable[[Path], None]] = {
    "a huge line of JSON lines": _huge_line,
    "a huge file of text": _huge_file,
    "a huge cell of Parquet": _huge_cell,
    "many tiny documents": _tiny,
    "one of Latin letters as large as may be": _of_corpus(*LATIN),
    "one of ideographs as large as may be": _of_corpus(*CJK),
    "one line without blanks as large as may be": _no_blanks,
}

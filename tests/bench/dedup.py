"""Near-duplicates: speed against datatrove, what is found of what it finds and of what was planted, and scaling.

Both read the same jsonl files of the corpus that GEMCUTTER_CORPUS names and write the documents that stay, one process
at a time on one core, with FineWeb's 14 bands of 8 rows: signatures, clusters and the filter, from start to end. Ours
is done before and after, and the mean counts, as other work on the machine comes and goes. Found are, of the pairs of
datatrove's second stage that are 0.8 similar by its own shingles, those of which we keep one at most. Planted are pairs
of documents with words substituted, inserted and deleted, at similarities that plain sets of words tell. Scaled are
documents with copies of them in which words are exchanged; ranges are so small that every step has many.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from data_pipeline.duplicates import minhash, steps
from data_pipeline.duplicates.minhash import Shingling
from data_pipeline.signals.tokens import Tokens
from tests.bench.report import Report, Row, compare
from tests.data_pipeline.duplicates_tasks import VOCABULARY, edited, jaccard, planted, sentence

ROOT = Path(__file__).parents[2]
DATATROVE = ROOT / ".venv-bench" / "datatrove" / "bin" / "python"

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
    parser.add_argument("--datatrove", type=Path, default=DATATROVE, help="Python of datatrove's environment")
    parser.add_argument("--packages", nargs="*", default=PACKAGES, help="of the corpus")
    parser.add_argument("--only", choices=("speed", "planted", "scaling"), help="one part")
    chosen = parser.parse_args(options)
    report = Report("dedup", {"packages": list(chosen.packages)})
    parts = {
        "planted": lambda: planted_pairs(report),
        "scaling": lambda: scaling(runs / "dedup", report),
        "speed": lambda: speed(runs / "dedup", chosen.datatrove, chosen.packages, report),
    }
    for name, part in parts.items():
        if chosen.only in (None, name):
            report.rows += part()
    return report


def speed(runs: Path, python: Path, packages: Sequence[str], report: Report) -> list[Row]:
    """From documents to documents that stay, beside datatrove."""
    documents = runs / "documents"
    tasks = write_documents(documents, _lines(packages))
    warm_up(runs)
    before = _both(documents, runs)
    own = before[0]
    report.work |= {"documents": own["documents"], "characters": own["characters"]}
    out = _empty(runs / "datatrove")
    try:
        peer = _run([str(python), "-m", "tests.bench.peers.datatrove_minhash", str(documents), str(out), str(tasks)])
    except (OSError, subprocess.CalledProcessError) as error:
        report.errors["datatrove"] = f"{error}: {getattr(error, 'stderr', '')}"[-1000:]
        return [compare("characters/s, 14 x 8", own["characters"] / own["seconds"], {}, 15)]
    after = _both(documents, runs)
    report.details |= {"ours": before, "ours again": after, "datatrove": peer}
    version = [str(python), "-c", "import importlib.metadata as m; print(m.version('datatrove'))"]
    report.versions["datatrove"] = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    rows = []
    for label, name in (("s", "seconds"), ("s of processors", "cpu_seconds")):
        rates = [2 * own["characters"] / (one[name] + two[name]) for one, two in zip(before, after, strict=True)]
        them = {"datatrove": own["characters"] / peer[name]}
        rows.append(compare(f"characters/{label}, 14 x 8", rates[0], them, 15))
        rows.append(compare(f"characters/{label}, {OURS[0]} x {OURS[1]}", rates[1], them))
    pairs = np.load(out / "pairs.npy")
    for bands, _ in (FINEWEB, OURS):
        found = recall(pairs, np.load(runs / f"ours-{bands}" / "removed.npy"))
        report.details[f"pairs of datatrove, {bands} bands"] = found
        share = found["of 0.8 and more"]["found"] / found["of 0.8 and more"]["pairs"]
        rows.append(_bar(f"recall of its pairs of 0.8 and more, {bands} bands", share, 0.99))
    return rows


def _both(documents: Path, runs: Path) -> list[dict[str, Any]]:
    """Our figures with FineWeb's bands and with ours."""
    return [_ours(documents, runs / f"ours-{bands}", bands, rows, steps.RANGE_BYTES) for bands, rows in (FINEWEB, OURS)]


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


def planted_pairs(report: Report) -> list[Row]:
    """Pairs with edited words: what is found of the similar ones, and what is taken of others."""
    draw = random.Random(1)
    texts: list[str] = []
    for low, high in ((0.85, 0.95), (0.45, 0.6)):
        texts += [" ".join(words) for pair in planted(draw, 2000, low, high) for words in pair]
    folder = Path("runs/bench/dedup/planted")
    write_documents(folder, (json.dumps({"text": text}).encode() + b"\n" for text in texts))
    out = folder.with_name("ours-planted")
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


def scaling(runs: Path, report: Report) -> list[Row]:
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
    corpus = Path(os.environ["GEMCUTTER_CORPUS"]) / "text"
    for package in packages:
        with (corpus / f"{package}.jsonl.zst").open("rb") as packed:
            for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed), 2**20):
                if json.loads(line)["text"]:  # datatrove does not count those without
                    yield line


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


def _ours(documents: Path, out: Path, bands: int, rows: int, most: int) -> dict[str, Any]:
    numbers = map(str, (1, bands, rows, most))
    return _run([sys.executable, "-m", "tests.bench.ours_dedup", str(documents), str(_empty(out)), *numbers])


def _run(command: list[str]) -> dict[str, Any]:
    """The result of a process that has one core, as every process it starts."""
    core = str(max(os.sched_getaffinity(0)))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["taskset", "-c", core, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _bar(figure: str, ours: float, bar: float, *, at_most: bool = False) -> Row:
    """A figure with a bar of its own, not one relative to peers."""
    return Row(figure, ours, {}, None, bar, ours <= bar if at_most else ours >= bar)

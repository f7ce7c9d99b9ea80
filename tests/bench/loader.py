"""The data loader against others: tokens per second of one core, from local files, in batches of fixed shape.

All read the same documents (`corpus.py`), each in its own format and with its own best settings (`peers/`). Each is a
process of its own on one and the same core, without threads of its own for arithmetic; rounds are interleaved and every
round begins with another contestant, so that what else the machine does strikes all alike. Figures are medians of the
rounds. Files are in the page cache: what is measured is the work per token, not the disk.

Reached on two cores of a shared machine, 2026-11-24 (medians of 5 rounds of 4 s): 13.2 times webdataset with a document
per sample, 0.61 of numpy (aim 0.5); 0.67 of the fastest that shuffles ready rows and 0.35 of the fastest that does not
(aim 2: missed). What limits it: those copy 8 bytes a token and know no documents; ours writes 28 bytes of five arrays,
and a batch of 16,384 tokens may take 88 us to be twice as fast as the best that shuffles. Checking sha256 takes 21 of
that, reading 5 and packing windows from lengths 20, before anything is filled. Filling takes 80, the rest is Python for
each row; a compiled fill was not tried.

Tried. Kept: slices of memoryviews joined as bytes instead of slices of arrays concatenated (a third of the fill),
tokens that are freed with their window, so that the next one finds memory that is already mapped (a fifth), sparing the
garbage collector (a quarter). Not kept: building 64 rows at once (the arrays leave the cache, and fresh pages cost
faults; 16 is best), targets as the inputs moved by one (copying between int64 arrays 8 bytes apart took 50 us), one
gather by computed indices, a loop of slices per document.

Loaders give inputs and targets, ours also segments, positions and weights of several documents a row. The numpy
baseline gives all five.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench import corpus
from tests.bench.report import Report, Row, compare

ROOT = Path(__file__).parents[2]
# Against whom, and the ratio to reach against the best of them.
BARS = {
    "documents": ("a loader that reads a document per sample", 10.0),
    "rows": ("loaders of ready rows of S + 1 tokens, unshuffled", 2.0),
    "shuffled": ("the same, shuffled as ours is", 2.0),
    "baseline": ("numpy filling five arrays from a memmap", 0.5),
}


@dataclass(frozen=True)
class Contestant:
    """A script that speaks the protocol of `peers/protocol.py`, and one of its ways to read."""

    name: str
    module: str
    python: Path
    package: str | None  # whose version is reported
    variant: str | None = None  # None for the fastest, which is the script's first
    kind: str = "rows"

    @property
    def label(self) -> str:
        """The name, with the variant where one is chosen."""
        return f"{self.name} {self.variant}" if self.variant else self.name

    @property
    def script(self) -> Path:
        """The file of the module."""
        return ROOT.joinpath(*self.module.split(".")).with_suffix(".py")


def own_environment(name: str) -> Path:
    """The Python of a peer that cannot live in ours."""
    return ROOT / ".venv-bench" / name / "bin" / "python"


_HERE = Path(sys.executable)
_PEERS = "tests.bench.peers"
OURS = Contestant("ours", "tests.bench.ours", _HERE, None, kind="ours")
_MOSAICML = ("mosaicml-streaming", f"{_PEERS}.mosaicml_streaming", own_environment("mosaicml-streaming"))
_LITDATA = ("litdata", f"{_PEERS}.litdata", own_environment("litdata"))
CONTESTANTS = (
    Contestant("webdataset", f"{_PEERS}.webdataset", _HERE, "webdataset", "documents", "documents"),
    Contestant("webdataset", f"{_PEERS}.webdataset", _HERE, "webdataset", "rows"),
    Contestant(*_MOSAICML, "mosaicml-streaming", "index"),
    Contestant(*_MOSAICML, "mosaicml-streaming", "iterate"),
    Contestant(*_MOSAICML, "mosaicml-streaming", "shuffled", "shuffled"),
    Contestant(*_LITDATA, "litdata", "iterate"),
    Contestant(*_LITDATA, "litdata", "shuffled", "shuffled"),
    Contestant("datasets", f"{_PEERS}.datasets", _HERE, "datasets", "iterate-arrow"),
    Contestant("datasets", f"{_PEERS}.datasets", _HERE, "datasets", "shuffled", "shuffled"),
    Contestant("numpy", f"{_PEERS}.memmap", _HERE, None, "loop", kind="baseline"),
    Contestant("numpy", f"{_PEERS}.memmap", _HERE, None, "concatenate", kind="baseline"),
    Contestant("numpy", f"{_PEERS}.memmap", _HERE, None, "gather", kind="baseline"),
)


@dataclass(frozen=True)
class Settings:
    """What is read, and how often."""

    documents: Path
    prepared: Path
    S: int
    B: int
    rounds: int
    seconds: float
    core: int


class Failed(Exception):
    """A contestant that could not be measured, and why."""


def bench(runs: Path, options: Sequence[str]) -> Report:
    """Measure all contestants."""
    settings = _settings(runs, options)
    work = {
        **corpus.about(settings.documents),
        "S": settings.S,
        "B": settings.B,
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "cores": 1,
        "statistic": "median of the rounds",
    }
    report = Report("loader", work)
    report.rows += reading(settings, report)
    return report


def _settings(runs: Path, options: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m tests.bench loader", description=__doc__)
    parser.add_argument("--sequence-length", type=int, default=2048, metavar="S")
    parser.add_argument("--rows", type=int, default=8, metavar="B", help="of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a contestant in a round")
    chosen = parser.parse_args(options)
    documents = corpus.documents(runs)
    return Settings(
        documents=documents,
        prepared=runs / "loader" / f"{documents.name}-S{chosen.sequence_length}",
        S=chosen.sequence_length,
        B=chosen.rows,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        core=max(os.sched_getaffinity(0)),
    )


def reading(settings: Settings, report: Report) -> list[Row]:
    """Rows of the plain reading of batches; versions, details and errors go to the report."""
    console = Console(stderr=True)
    folders = _prepared(settings, report, console)
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(settings.rounds):
        entrants = [entrant for entrant in (OURS, *CONTESTANTS) if entrant.name in folders]
        start = number % max(1, len(entrants))
        for entrant in entrants[start:] + entrants[:start]:
            label = entrant.label
            if label in report.errors:
                continue
            try:
                read = read_ours if entrant is OURS else functools.partial(_read, entrant)
                result = read(folders[entrant.name], settings)
            except Failed as error:
                report.errors[label] = str(error)
                continue
            found.setdefault(label, []).append(result)
            console.print(f"round {number + 1}: {label}: {result['tokens'] / result['seconds'] / 1e6:.1f} M tokens/s")
    for label in found.keys() & report.errors.keys():
        del found[label]  # broke in a later round
    report.details |= {label: _detail(results) for label, results in found.items()}
    rows = []
    for unit, key in (("s", "tokens_per_second"), ("CPU s", "tokens_per_cpu_second")):
        medians = {label: statistics.median(detail[key]) for label, detail in report.details.items()}
        for kind, (against, bar) in BARS.items():
            labels = {contestant.label for contestant in CONTESTANTS if contestant.kind == kind}
            peers = {label: value for label, value in medians.items() if label in labels}
            rows.append(compare(f"tokens/{unit}, {against}", medians.get(OURS.label), peers, bar))
    return rows


# ---- ours: tests/bench/ours.py speaks the same protocol as the peers -------------------------------------------------


def prepare_ours(settings: Settings) -> Path:
    """Our shards of the documents. Raises Failed where they cannot be made."""
    if not OURS.script.exists():
        raise Failed(f"{OURS.script.relative_to(ROOT)} does not exist")
    # Their format follows from all of the data pipeline, not from the script alone.
    return _prepare(OURS, settings, [OURS.script, *sorted((ROOT / "data_pipeline").rglob("*.py"))])


def read_ours(folder: Path, settings: Settings) -> dict[str, Any]:
    """One reading of our own loader. Raises Failed where it cannot be measured."""
    return _read(OURS, folder, settings)


# ----------------------------------------------------------------------------------------------------------------------


def _prepared(settings: Settings, report: Report, console: Console) -> dict[str, Path]:
    """The folder of each contestant that could be prepared, by name."""
    folders: dict[str, Path] = {}
    for contestant in (OURS, *CONTESTANTS):
        if contestant.name in folders or contestant.name in report.errors:
            continue
        try:
            if contestant.package:
                report.versions[contestant.package] = version_of(contestant)
            console.print(f"preparing {contestant.name}")
            if contestant is OURS:
                folders[contestant.name] = prepare_ours(settings)
            else:
                folders[contestant.name] = _prepare(contestant, settings, [contestant.script])
        except Failed as error:
            report.errors[contestant.name] = str(error)
    return folders


def version_of(contestant: Contestant) -> str:
    """The version of its package in its environment. Raises Failed where there is none."""
    code = f"import importlib.metadata as m; print(m.version({contestant.package!r}))"
    return run_python(contestant.python, ["-c", code], {}).strip()


def _prepare(contestant: Contestant, settings: Settings, made_by: Sequence[Path]) -> Path:
    """The documents in the contestant's format; made once for each state of the files that make them."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in made_by)).hexdigest()[:12]
    folder = settings.prepared / f"{contestant.name}-{digest}"
    done = folder.with_name(f"{folder.name}.done")
    if not done.exists():
        for old in settings.prepared.glob(f"{contestant.name}-*"):  # of earlier states, and left-overs
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        settings.prepared.mkdir(parents=True, exist_ok=True)
        arguments = ["prepare", str(settings.documents), str(folder), str(settings.S)]
        run_python(contestant.python, ["-m", contestant.module, *arguments], {})
        done.touch()
    return folder


def _read(contestant: Contestant, folder: Path, settings: Settings) -> dict[str, Any]:
    arguments = ["read", str(folder), str(settings.S), str(settings.B), str(settings.seconds)]
    arguments += [contestant.variant] if contestant.variant else []
    with one_core(settings.core):
        output = run_python(contestant.python, ["-m", contestant.module, *arguments], ONE_THREAD)
    return json.loads(output.splitlines()[-1])


ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")


@contextmanager
def one_core(core: int) -> Iterator[None]:
    """Processes that are started here stay on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_python(python: Path, arguments: Sequence[str], environment: dict[str, str]) -> str:
    """Standard output of a process in the root of the repository. Raises Failed with the end of its complaint."""
    if not python.exists():
        raise Failed(f"{python.relative_to(ROOT)} does not exist: run `make setup-bench`")
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise Failed(f"exit code {done.returncode}: {''.join(last)}")
    return done.stdout


def _detail(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "settings": results[0]["settings"],
        "tokens_per_second": [result["tokens"] / result["seconds"] for result in results],
        "tokens_per_cpu_second": [result["tokens"] / result["cpu_seconds"] for result in results],
    }

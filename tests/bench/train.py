"""Training against others: tokens per second and memory of one small Gemma on two threads, and what limits it.

All train the same Gemma 1 (`peers/training.py`) from the same weights on the same tokens, each with its own best
settings (`peers/`). Each is a process that stays; windows of a step are interleaved and every round begins with another
contestant, so that what else the machine does strikes all alike. Figures are medians of the windows.

Reached on two cores of a shared machine, 2026-11-26 (medians of 30 windows of one step, all in one run; the last two
lines in runs of their own):

    figure                                      ours    best or leanest peer                         bar
    tokens/s                                    2,046   litgpt compiled 1,745: 1.17                  1.15: met
    10th percentile over median of tokens/s     0.950   transformers compiled 0.975                  0.9: met
    model FLOP/s over the best bf16 product     0.648   litgpt compiled 0.56                         0.65: missed
    peak MB above imports                       1,774   transformers compiled 2,348: 1.32            1.54: missed
    loss over its products, width 512, 2,048    1.17, 1.11                                           1.5: met
    two processes over one with two threads     0.91                                                 0.85: met

A run an hour before had 1,990 tokens/s (1.15 of litgpt's) and was less steady, 0.895, as the whole machine was: the
bare product fell by a sixth in the same windows. Eager, ours reached 1,827 and transformers 1,297 there.

The peers are that fast only where glibc keeps what was freed (`keeping memory`, two variables of the environment): with
what they do by themselves transformers compiled reached 1,211 tokens/s in this run. Our trainer asks glibc for it by
itself. The leanest peer is one that does not keep memory, half as fast.

Where time goes, of 2.05 s a step of ours compiled (torch.profiler): matrix products 1.29 s, at 900 GFLOP/s; attention
0.34 s, 0.10 forward and 0.24 backward (torch's own kernel, before: 0.64); elementwise parts of the loss 0.05, of
blocks 0.13; copies, most of them weights and gradients between float32 and bfloat16, 0.09; the fused update 0.04.
Where memory goes: masters and moments 570 MB; what the compiler brings and leaves about 190; open windows of the data
order about 140 after 30 steps; what a step holds at most, in the loss, 630; the rest are gaps in the heap.

What was tried for memory: half of the activations instead of 0.7 (`trainer.backend.remat`) saves 120 MB, and steps
take 8 % longer; chunks of the loss half as large save nothing that shows and cost 1.5 %; giving blocks above 16 or 32
MB back to the system at once, huge pages (`glibc.malloc.hugetlb`, THP_MEM_ALLOC_ENABLE) and one heap for all threads
save nothing at equal speed.

Peers see plain causal rows. Weights and tokens are equal, so losses are too: 10.410 for all in the first step, and in
the sixth 9.868 for peers and for ours where it takes each row for one document (`ours one-document`), 9.916 where
documents are apart. Documents are nearly as long as rows here (6.5 a batch of four), so computing them apart saves 1 %
of the FLOPs. Tokens per second count positions, padding included.

Not every process is as fast each time it starts: transformers eager keeping memory took 2.7 s a step in one run, and
3.1 to 4.6 s in another. Of litgpt's ways, logits in chunks of the head were 8 % slower than without.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console

from tests.bench import corpus, ours_loss
from tests.bench.loader import ROOT, Contestant, Failed, own_environment, run_python, version_of
from tests.bench.peers import training
from tests.bench.report import Report, Row, commit, compare
from trainer.model.config import GemmaConfig, flops_per_token

FASTER, STEADY, SHARE_OF_PEAK, LEANER, LOSS, TWO_PROCESSES = 1.15, 0.9, 0.65, 1 / 0.65, 1.5, 0.85  # bars
GROWTH = 0.01  # bar: memory that more rows take, as a share of what their logits would
PARTS = ("speed", "loss", "processes")
THREADS = 2

# As our launcher sets it: threads that spin for long while they wait starve each other.
_ENVIRONMENT = {"GOMP_SPINCOUNT": "20000"}
# What our trainer asks of glibc by itself: to keep what was freed instead of giving it back to the system.
_KEEPS_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_MAX_": "0"}


@dataclass(frozen=True)
class Trainer(Contestant):
    """A script that speaks the protocol of `peers/training.py`, one of its variants, and where it runs."""

    keeps_memory: bool = False  # peers run with and without
    processes: int = 1
    usual: bool = True  # takes part where no contestants are named

    @property
    def label(self) -> str:
        """Name, variant and what else tells it from others."""
        kept = ["keeping memory"] if self.keeps_memory and self.kind == "peer" else []
        several = [f"{self.processes} processes"] if self.processes > 1 else []
        return " ".join([self.name, str(self.variant), *kept, *several])


_HERE = Path(sys.executable)

# The best ways of each peer, and the leanest of all; found by naming all with --contestants.
_USUAL = {
    ("transformers", "compiled", True),
    ("transformers", "compiled", False),
    ("transformers", "eager", True),
    ("litgpt", "compiled", True),
}


def _peer(name: str, python: Path, variant: str, keeps_memory: bool, usual: bool) -> Trainer:
    return Trainer(name, f"tests.bench.peers.{name}", python, name, variant, "peer", keeps_memory, usual=usual)


def _ours(variant: str, kind: str = "ours", processes: int = 1, usual: bool = True) -> Trainer:
    return Trainer("ours", "tests.bench.ours_training", _HERE, None, variant, kind, processes=processes, usual=usual)


OURS, OURS_EAGER, OURS_TWO = _ours("compiled"), _ours("eager"), _ours("compiled", processes=2)
MATMUL = Trainer("matmul", "tests.bench.peers.matmul", _HERE, None, "mm", "yardstick")
PEERS = tuple(
    _peer(name, python, variant, keeps_memory, (name, variant, keeps_memory) in _USUAL)
    for name, python, variants in (
        ("transformers", _HERE, ("compiled", "eager")),
        ("litgpt", own_environment("litgpt"), ("compiled", "compiled-head", "eager", "eager-head")),
    )
    for variant in variants
    for keeps_memory in (True, False)
)
CONTESTANTS = (OURS, OURS_EAGER, _ours("one-document", usual=False), MATMUL, *PEERS)


def _alone(variant: str, keeps_memory: bool) -> Trainer:
    return Trainer("loss", "tests.bench.ours_loss", _HERE, None, variant, "loss", keeps_memory)


TIMED = {width: _alone(f"time-{width}", True) for width in ours_loss.WIDTHS}
MEASURED = {rows: _alone(f"memory-{rows}", False) for rows in ours_loss.MEMORY_ROWS}


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often."""

    folder: Path
    windows: int
    steps: int
    warm_up: int
    contestants: Sequence[str]
    parts: Sequence[str]


def bench(runs: Path, options: Sequence[str]) -> Report:
    """Measure what the options name."""
    settings, before = _settings(runs, options)
    work = {
        "model": "Gemma 1",
        "shape": {name: getattr(training, name) for name in ("D", "LAYERS", "HEADS", "KV_HEADS", "HEAD_DIM", "FF")},
        "vocabulary": training.VOCAB,
        "batch": [training.B, training.S],
        "threads": THREADS,
        "documents": settings.folder.name,
        "steps of a window": settings.steps,
        "warm-up steps": settings.warm_up,
        "statistic": "median of the windows",
    }  # fmt: skip
    report = Report("train", work)
    if before is not None:
        if before["work"] != work or before["commit"] != commit():
            raise SystemExit("--add: the report is of another commit or other work; leave --add out")
        report.details, report.errors, report.versions = before["details"], before["errors"], before["versions"]
    console = Console(stderr=True)
    if "speed" in settings.parts:
        chosen = [
            each for each in CONTESTANTS
            if (each.label in settings.contestants if settings.contestants else each.usual)
        ]  # fmt: skip
        measure(chosen, settings, report, console)
    if "loss" in settings.parts:
        measure(list(TIMED.values()), settings, report, console)
        for alone in MEASURED.values():  # each in a process that did nothing before
            measure([alone], dataclasses.replace(settings, windows=1, warm_up=0), report, console)
    if "processes" in settings.parts:
        measure([OURS, OURS_TWO], settings, report, console, suffix=" (beside each other)")
    report.rows = rows(report.details, settings.folder)
    return report


def _settings(runs: Path, options: Sequence[str]) -> tuple[Settings, dict[str, Any] | None]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench train", description=__doc__)
    parser.add_argument("--windows", type=int, default=30, help="of each contestant")
    parser.add_argument("--steps", type=int, default=1, help="of a window")
    parser.add_argument("--warm-up", type=int, default=3, metavar="STEPS")
    parser.add_argument("--contestants", nargs="+", default=[], metavar="LABEL", help="instead of the usual ones")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--add", action="store_true", help="windows to those of the last report")
    chosen = parser.parse_args(options)
    known = [each.label for each in CONTESTANTS]
    if unknown := sorted(set(chosen.contestants) - set(known)):
        parser.error(f"there is no contestant {', '.join(unknown)}; there are {', '.join(known)}")
    report = runs / "train.json"
    before = json.loads(report.read_text()) if chosen.add and report.exists() else None
    settings = Settings(
        folder=prepared(runs),
        windows=chosen.windows,
        steps=chosen.steps,
        warm_up=chosen.warm_up,
        contestants=chosen.contestants,
        parts=chosen.parts,
    )
    return settings, before


def prepared(runs: Path) -> Path:
    """What all train on, made once for each state of the files that make it."""
    documents = corpus.documents(runs)
    made_by = [OURS.script, training.__file__, *sorted((ROOT / "data_pipeline").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(Path(file).read_bytes() for file in made_by)).hexdigest()[:12]
    folder = (runs / "train" / f"{documents.name}-{digest}").absolute()
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(runs / "train", ignore_errors=True)
        run_python(_HERE, ["-m", OURS.module, "prepare", str(documents), str(folder)], _environment(OURS))
        done.touch()
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return folder


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(
    contestants: Sequence[Trainer], settings: Settings, report: Report, console: Console, suffix: str = ""
) -> None:
    """Interleaved windows of the contestants into the report's details; who fails is among its errors."""
    with ExitStack() as stack:
        present: list[tuple[Trainer, Resident]] = []
        for each in contestants:
            try:
                if each.package:
                    report.versions[each.package] = version_of(each)
                console.print(f"starting {each.label}")
                resident = stack.enter_context(Resident(each, settings.folder))
                warm = resident.run(settings.warm_up) if settings.warm_up else {"results": []}
            except Failed as error:
                report.errors[each.label] = str(error)
                continue
            present.append((each, resident))
            detail = report.details.setdefault(
                each.label + suffix, {"settings": resident.settings, "seconds": [], "results": [], "memory": []}
            )
            detail["first results"] = warm["results"]
        for number in range(settings.windows):
            start = number % max(1, len(present))
            for each, resident in present[start:] + present[:start]:
                if each.label in report.errors:
                    continue
                try:
                    window = resident.run(settings.steps)
                except Failed as error:
                    report.errors[each.label] = str(error)
                    continue
                detail = report.details[each.label + suffix]
                detail["seconds"].append(window["seconds"])
                detail["results"] += window["results"]
                console.print(f"window {number + 1}: {each.label}: {window['seconds']:.3f} s")
        for each, resident in present:
            memory = {"peak_bytes": resident.peak_bytes, "imported_bytes": resident.imported_bytes}
            report.details[each.label + suffix]["memory"].append(memory)


def _environment(trainer: Trainer) -> dict[str, str]:
    kept = _KEEPS_MEMORY if trainer.keeps_memory else {}
    return _ENVIRONMENT | kept | {"OMP_NUM_THREADS": str(THREADS // trainer.processes)}


class Resident:
    """A contestant that stays: one process or several that take the same steps together."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        if not trainer.python.exists():
            raise Failed(f"{trainer.python.relative_to(ROOT)} does not exist: run `make setup-bench`")
        command = [str(trainer.python), "-m", trainer.module, str(folder), str(trainer.variant)]
        port = _free_port()
        self._processes = []
        (folder / "runs").mkdir(exist_ok=True)
        self._complaints = [folder / "runs" / f"{trainer.label}-{rank}.log" for rank in range(trainer.processes)]
        for rank, complaint in enumerate(self._complaints):
            several = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": trainer.processes, "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            } if trainer.processes > 1 else {}  # fmt: skip
            environment = _environment(trainer) | {name: str(value) for name, value in several.items()}
            with complaint.open("w") as file:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                )
            self._processes.append(process)
        self.peak_bytes = 0
        self._watching = threading.Event()  # set while there is work whose memory counts
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watching.set()
        self._watcher.start()

    def __enter__(self) -> Resident:
        try:
            ready = self._answers()
        except Failed:
            self.__exit__()
            raise
        self.settings = ready[0]["settings"]
        self.imported_bytes = sum(answer["imported_bytes"] for answer in ready)
        return self

    def run(self, steps: int) -> dict[str, Any]:
        """So many steps; seconds are those of the slowest process. Raises Failed where one ended."""
        self._watching.set()
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # its answer, or the lack of one, says so
                process.stdin.write(f"run {steps}\n")
                process.stdin.flush()
        answers = self._answers()
        # A look now and then misses short peaks, which each process knows of itself.
        self.peak_bytes = max(self.peak_bytes, sum(answer["peak_bytes"] for answer in answers))
        return {"seconds": max(answer["seconds"] for answer in answers), "results": answers[0]["results"]}

    def _answers(self) -> list[dict[str, Any]]:
        lines = [process.stdout.readline() for process in self._processes if process.stdout is not None]
        self._watching.clear()
        if not all(lines):
            raise Failed(self._complaint())
        return [json.loads(line) for line in lines]

    def _complaint(self) -> str:
        for process, complaint in zip(self._processes, self._complaints, strict=True):
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            last = [line for line in complaint.read_text().splitlines() if line.strip()][-1:]
            if process.returncode:
                return f"exit code {process.returncode}: {''.join(last)}"
        return "it ended without an answer"

    def _watch(self) -> None:
        """The most memory that all processes and their children held at once, looked at twenty times a second."""
        while not self._ended.wait(0.05):
            if self._watching.is_set():
                held = sum(_resident_bytes(pid) for process in self._processes for pid in _tree(process.pid))
                self.peak_bytes = max(self.peak_bytes, held)

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._ended.set()
        self._watcher.join()
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()  # the end of its input ends it
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


def _tree(pid: int) -> Iterator[int]:
    """A process and all below it, as far as they still live."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                yield from _tree(int(child))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # it has ended
        return 0


# ---- figures ---------------------------------------------------------------------------------------------------------


def rows(details: dict[str, Any], folder: Path) -> list[Row]:
    """What the details say, against the bars."""
    found = []
    speeds = {each.label: _speeds(details[each.label]) for each in (*CONTESTANTS,) if each.label in details}
    peers = {each.label for each in PEERS if each.label in speeds}
    medians = {label: statistics.median(speed) for label, speed in speeds.items()}
    if OURS.label in medians:
        ours = medians[OURS.label]
        found.append(compare("tokens/s", ours, {label: medians[label] for label in peers}, FASTER))
        uncompiled = {label: medians[label] for label in peers if " eager" in label}
        found.append(compare("tokens/s, none compiled", medians.get(OURS_EAGER.label), uncompiled))
        found.append(_steadiness(speeds, peers))
        found += _share_of_peak(details, medians, peers, folder)
        bytes_ = {label: _most_bytes(details[label]) / 1e6 for label in (OURS.label, *peers)}
        own = bytes_.pop(OURS.label)
        found.append(compare("peak MB above imports", own, bytes_, LEANER, lower_is_better=True))
    found += _loss_alone(details)
    one, two = (f"{each.label} (beside each other)" for each in (OURS, OURS_TWO))
    if one in details and two in details:
        one_speed, two_speed = (statistics.median(_speeds(details[name])) for name in (one, two))
        found.append(_bar("tokens/s of two processes over one with two threads", two_speed / one_speed, TWO_PROCESSES))
    return found


def _speeds(detail: dict[str, Any]) -> list[float]:
    """Tokens per second of each window."""
    per_step = training.B * training.S
    steps = len(detail["results"]) // len(detail["seconds"])
    return [steps * per_step / seconds for seconds in detail["seconds"]]


def _most_bytes(detail: dict[str, Any]) -> float:
    return max(memory["peak_bytes"] - memory["imported_bytes"] for memory in detail["memory"])


def _steadiness(speeds: dict[str, list[float]], peers: set[str]) -> Row:
    steady = {label: float(np.percentile(speed, 10)) / statistics.median(speed) for label, speed in speeds.items()}
    own, others = steady[OURS.label], {label: steady[label] for label in peers}
    row = compare("steadiness: 10th percentile over median of tokens/s", own, others, STEADY)
    return dataclasses.replace(row, met=own >= STEADY or own >= max(others.values(), default=STEADY))


def _share_of_peak(details: dict[str, Any], medians: dict[str, float], peers: set[str], folder: Path) -> list[Row]:
    """Floating-point operations of matrix products, of the keys that the mask of each leaves visible."""
    if MATMUL.label not in details:
        return []
    results = details[MATMUL.label]["results"]
    best = max(statistics.median(result[shape] for result in results) for shape in results[0])
    rows_as_one, by_document = flops_of_a_token(folder)
    details["flops"] = {
        "best bf16 product, FLOP/s": best,
        "of a token, rows as one document": rows_as_one,
        "of a token, documents apart": by_document,
    }
    shares = {label: medians[label] * rows_as_one / best for label in peers}
    own = medians[OURS.label] * by_document / best
    return [_bar("model FLOP/s over the best bf16 product", own, SHARE_OF_PEAK, peers=shares)]


def flops_of_a_token(folder: Path) -> tuple[float, float]:
    """Model FLOPs per token of these micro-batches where each row is one document, and where documents are apart."""
    config = GemmaConfig(
        generation=1, vocab_size=training.VOCAB, num_layers=training.LAYERS, d_model=training.D, d_ff=training.FF,
        num_heads=training.HEADS, num_kv_heads=training.KV_HEADS, head_dim=training.HEAD_DIM, pattern=("global",),
        window=None, query_pre_attention=training.HEAD_DIM, max_positions=8192,
    )  # fmt: skip
    with np.load(folder / "micro_batches.npz") as file:
        segments = file["segments"].reshape(-1, training.S)
    begins = np.ones(segments.shape, dtype=bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    lengths = np.diff(np.append(np.flatnonzero(begins), segments.size)).astype(np.int64)
    # A document of L tokens costs what L tokens of a row of that length do.
    apart = sum(length * flops_per_token(config, length) for length in lengths.tolist()) / segments.size
    return flops_per_token(config, training.S), apart


def _loss_alone(details: dict[str, Any]) -> list[Row]:
    found = []
    for width, timed in TIMED.items():
        if timed.label in details:
            results = details[timed.label]["results"]
            own, products = (statistics.median(result[what] for result in results) for what in ("loss", "products"))
            figure = f"loss of {ours_loss.VOCAB:,} words over its three products, width {width}"
            found.append(_bar(figure, own / products, LOSS, at_least=False))
    if all(alone.label in details for alone in MEASURED.values()):
        few, many = ours_loss.MEMORY_ROWS
        extra = {n: details[alone.label]["results"][-1]["extra_bytes"] for n, alone in MEASURED.items()}
        grown = (extra[many] - extra[few]) / ((many - few) * ours_loss.VOCAB * 4)
        found.append(_bar(f"memory of {many} rows over {few}, per float32 logit", grown, GROWTH, at_least=False))
    return found


def _bar(figure: str, ours: float, bar: float, *, at_least: bool = True, peers: dict[str, float] | None = None) -> Row:
    """A figure with a bar of its own, not one relative to peers."""
    return Row(figure, ours, peers or {}, None, bar, ours >= bar if at_least else ours <= bar)

"""Plans for TPU slices beside those of MaxText 0.2.5: memory, bytes received and the time of a verdict, per chip.

Nothing is executed: `gemcutter plan` traces the training step and libtpu compiles it, each case in a process of
.venv-tpu and without results of earlier ones. MaxText's figures were measured on 2026-11-22 with its `train_compile`,
the same models, meshes, batches and AdamW, splash attention and its default flags, on libtpu 0.0.46 (jax 0.11.1); ours
come from libtpu 0.0.21, which torch_xla 2.9.0 is bound to. So compilers differ, too. MaxText sums gradients in bf16.

The floor of a mesh is what `trainer.plan.tpu.floor` says; bars are the figures aimed at, in the unit of the row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.report import Report, Row

ROOT = Path(__file__).parents[2]
PEER = "MaxText"  # 0.2.5 on libtpu 0.0.46
SHARED = ("model=gemma_7b", "hardware=v5e-256", "mesh.fsdp=16", "mesh.tensor=16", "data.sequence_length=8192")
SEQUENCES = (24, 26, 28, 30, 32, 36, 40, 44, 48, 52, 56, 60, 64, 72, 80)  # memory is not monotone in them


class Unplanned(RuntimeError):
    """The plan of a case failed: the message holds the end of what it said."""


@dataclass(frozen=True)
class Case:
    """A step of one micro-batch, one sequence for each place of mesh.fsdp.

    gib         of memory that are aimed at, and those of MaxText
    received    GB that are aimed at, and those of MaxText; with gradients summed in bf16, as all of these
    over_floor  received bytes over the floor that are aimed at
    """

    name: str
    overrides: tuple[str, ...]
    gib: tuple[float, float]
    received: tuple[float, float]
    over_floor: float | None


CASES = (
    Case(
        "2B v5e-256", ("model=gemma_2b", "hardware=v5e-256", "data.sequence_length=8192", "tokens_per_step=2097152"),
        (5.5, 6.62), (1.15 * 14.98, 19.69), 1.15,
    ),
    Case("7B v5e-256 16x16", (*SHARED, "tokens_per_step=131072"), (1.2, 1.19), (25.5, 25.53), None),
    Case(
        "27B v5p-512", ("model=gemma3_27b", "hardware=v5p-512", "data.sequence_length=8192", "tokens_per_step=2097152"),
        (15.0, 20.17), (1.3 * 161.4, 253.9), 1.3,
    ),
)  # fmt: skip
QUICK = Case(
    "2B v5e-16", ("model=gemma_2b", "hardware=v5e-16", "data.sequence_length=2048", "tokens_per_step=32768"),
    (4.5, 5.27), (1.05 * 14.10, 14.40), 1.05,
)  # fmt: skip


def bench(runs: Path, options: Sequence[str]) -> Report:
    """All figures of plans for TPUs."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench plan", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small case only")
    chosen = parser.parse_args(options)
    work = {
        "what": "training steps compiled for TPU slices that are not attached; none is executed",
        "model": "Gemma with AdamW, fp32 masters, bf16 compute, remat=block unless a row says otherwise",
        "cases": {case.name: case.overrides for case in (QUICK, *CASES)},
    }
    report = Report("plan", work, versions={"maxtext": "0.2.5", "libtpu of MaxText": "0.0.46"})
    for case in (QUICK,) if chosen.quick else (QUICK, *CASES):
        try:
            report.rows += _rows(case, report)
        except Unplanned as error:
            report.errors[case.name] = str(error)
    if not chosen.quick:
        for name, figures in (("selective", _selective), ("sequences", _sequences)):
            try:
                report.rows += figures(report)
            except Unplanned as error:
                report.errors[name] = str(error)
    return report


def _rows(case: Case, report: Report) -> Iterator[Row]:
    """Of a case with gradients summed in bf16, as MaxText sums them, and in fp32."""
    for dtype in ("bf16", "fp32"):
        as_peer = dtype == "bf16"
        said, seconds = _planned(
            report,
            f"{case.name}, {dtype}",
            *case.overrides,
            "micro_batch=1",
            "remat=block",
            f"mesh.reduce_dtype={dtype}",
        )
        compiled, name = said["compiled"], f"{case.name}, {dtype}"
        for what, key, unit, (bar, peer) in (
            ("GiB", "hbm_bytes", 2**30, case.gib),
            ("GB received", "received_bytes", 1e9, case.received),
        ):
            yield held(
                f"{name}: {what}", compiled[key] / unit, bar if as_peer else None, {PEER: peer} if as_peer else {}
            )
        yield held(f"{name}: received / floor", compiled["ratio"], case.over_floor if as_peer else None, {})
        if as_peer and case is CASES[0]:
            peers = {f"{PEER}, fast mode": 9.0, f"{PEER}, whole compile": 56.0}
            yield held("2B v5e-256: seconds to verdict", seconds, 60.0, peers)


def _selective(report: Report) -> Iterator[Row]:
    """Matrix products kept: of MaxText its policy `minimal`, which was refused; two special flags make it fit."""
    case = CASES[0]
    overrides = (*case.overrides, "micro_batch=1", "mesh.reduce_dtype=bf16")
    whole, _ = _planned(report, "2B v5e-256, block again", *overrides, "remat=block")
    kept, _ = _planned(report, "2B v5e-256, selective", *overrides, "remat=selective")
    peers = {f"{PEER}, refused": 17.84, f"{PEER}, two flags": 14.93}
    limit = round(kept["compiled"]["limit_bytes"] / 2**30, 2)
    yield held(f"{case.name}, selective: GiB", kept["compiled"]["hbm_bytes"] / 2**30, limit, peers)
    received, most = (said["compiled"]["received_bytes"] / 1e9 for said in (kept, whole))
    yield held(f"{case.name}, selective: GB received", received, most, {f"{PEER}, two flags": 21.9})


def _sequences(report: Report) -> Iterator[Row]:
    """How many rows of 8192 a shard of Gemma 7B can take at once."""
    most = 0
    for rows in SEQUENCES:
        said, _ = _planned(
            report, f"7B, {rows} sequences", *SHARED, f"micro_batch={rows}", f"tokens_per_step={rows * 8192 * 16}",
            "remat=block", "mesh.reduce_dtype=bf16",
        )  # fmt: skip
        most = rows if said["fits"] else most
    yield Row("7B v5e-256 16x16: sequences that fit", most, {PEER: 24.0}, most / 24.0, 26.0, most >= 26)


def held(figure: str, ours: float, bar: float | None, peers: dict[str, float]) -> Row:
    """A figure that should be small, beside the best of the peers."""
    ratio = min(peers.values()) / ours if peers else None
    return Row(figure, ours, peers, ratio, bar, None if bar is None else ours <= bar)


def _planned(report: Report, name: str, *overrides: str) -> tuple[dict[str, Any], float]:
    """A plan as JSON, and the seconds that the command took. Raises Unplanned where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run(
            [_python(), "-m", "trainer", "plan", *overrides, "plan.output=plan.json"],
            cwd=folder, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": folder},  # results of earlier plans lie at home
        )  # fmt: skip
        seconds = time.monotonic() - began
        if done.returncode:
            raise Unplanned(done.stderr[-500:])
        said: dict[str, Any] = json.loads(Path(folder, "plan.json").read_text())
    if said["compiled"] is None:
        raise Unplanned(done.stdout[-500:])
    compiled = said["compiled"]
    report.versions |= {f"{package} of ours": version for package, version in compiled["versions"].items()}
    report.details[name] = {"overrides": overrides, "command_seconds": seconds} | {
        key: compiled[key]
        for key in ("hbm_bytes", "argument_bytes", "temporary_bytes", "fits", "received_bytes", "floor_bytes", "ratio",
                    "traffic", "topology", "chips", "seconds")
    }  # fmt: skip
    return said, seconds


def _python() -> str:
    """Of the environment for TPUs: this one, or the one beside. Raises Unplanned where neither is."""
    if importlib.util.find_spec("torch_xla") is not None:
        return sys.executable
    beside = ROOT / ".venv-tpu" / "bin" / "python"
    if not beside.exists():
        raise Unplanned("there is no .venv-tpu: run make setup-tpu")
    return str(beside)

"""What a GPU has to prove: parity, every way to compute a step on one device, and speed beside transformers.

    python tests/gpu/run.py [--out runs/gpu/gpu.json] [--seconds 480] [--device cpu --quick]

Writes one JSON in the form of tests/bench/report.py: `rows` has the figures, `details` every check of every part with
its outcome (passed, failed, not run) and `errors` why some were not passed. Where torch finds no CUDA device it says so
and exits with 78. Exits with 1 where a check failed, else with 0.

Each part runs in a process of its own. A part that fails, or a device that is lost in it, takes one check with it: the
next process goes on with the rest. Needs torch and numpy; what needs more is not run where that is absent.
`--device cpu --quick` goes through all of it at tiny sizes, to show that the script works; its figures name the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if not __package__:  # started by its path: the folder of the file is where imports begin, and that of the rooms is not
    sys.path[0] = str(ROOT)

import torch  # noqa: E402

from conf.exits import CONFIG, DONE  # noqa: E402
from tests.bench.report import Report  # noqa: E402
from tests.gpu.checks import Place, outcomes, run_checks  # noqa: E402

FAILED = 1
LOST, SPENT = 70, -1  # how the process of a part ends: its device is lost; it was ended
PARTS = {"device": 0.1, "parity": 0.3, "matrix": 0.6, "speed": 1.0}  # share of the time at which each has to be done
SECONDS = 480


def main() -> int:
    """Run every part within the time; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python tests/gpu/run.py", description="What a GPU has to prove, as one JSON."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/gpu.json"), help="file to write")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts; what does not fit is not run")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in the process of a part, which tells --out
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(f"no CUDA device: torch {torch.__version__} finds none here, so nothing was run", file=sys.stderr)
        return CONFIG
    if chosen.part:
        return run_part(chosen.part, Place(chosen.device, chosen.quick, time.time() + chosen.seconds), chosen.out)
    out, began, details = chosen.out.absolute(), time.time(), {}
    os.chdir(ROOT)  # whose commit is reported
    for part, share in PARTS.items():
        details[part] = told_by(part, chosen.device, chosen.quick, began + share * chosen.seconds)
        print(f"{part}: {tally(details[part])}", flush=True)
    report = reported(out.stem, details, chosen.quick, chosen.seconds)
    print(f"written to {report.write(out.parent)}")
    return FAILED if any(check["outcome"] == "failed" for part in details.values() for check in part.values()) else DONE


def run_part(part: str, place: Place, told: Path) -> int:
    """Make the checks of a part here."""
    torch.set_float32_matmul_precision("highest")  # no TF32
    if place.device == "cpu":
        torch.set_num_threads(1)  # with two, the first pass of a process now and then differs by 5e-5
    checks = (
        {"device": partial(device, place)}
        if part == "device"
        else importlib.import_module(f"tests.gpu.{part}").checks(place)
    )
    return DONE if run_checks(checks, place, told) else LOST


def device(place: Place) -> dict[str, Any]:
    """What everything was measured on."""
    found: dict[str, Any] = {"name": "cpu", "torch": torch.__version__, "cuda": torch.version.cuda}
    found["platform"] = platform.platform()
    if place.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        found |= {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability}
    return found


def told_by(part: str, device: str, quick: bool, until: float) -> dict[str, dict[str, Any]]:
    """The outcome of every check of a part, by as many processes as it takes."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told.jsonl")
        while True:
            code, last = in_process(part, device, quick, until, told)
            reason = "the time was spent" if code in (DONE, SPENT) else f"the process ended with {code}: {last}"
            found = outcomes(told) or {part: {"outcome": "begun"}}  # it ended before it could name its checks
            at = [name for name, said in found.items() if said.get("outcome") == "begun"]
            for name in at:
                found[name] = {"outcome": "not run" if code == SPENT else "failed", "reason": reason}
            if code in (DONE, SPENT) or all(found.values()) or not (at or code == LOST):
                break
            with told.open("a") as file:
                file.writelines(json.dumps({"check": name, **found[name]}) + "\n" for name in at)
    return {name: said or {"outcome": "not run", "reason": reason} for name, said in found.items()}


def in_process(part: str, device: str, quick: bool, until: float, told: Path) -> tuple[int, str]:
    """How a process of a part ended, SPENT where it was ended with the time, and the last line that it said."""
    left = until - time.time()
    if left <= 0:
        return SPENT, ""
    command = [sys.executable, "-m", "tests.gpu.run", "--part", part, "--out", str(told), "--device", device]
    command += ["--seconds", str(left), *(["--quick"] if quick else [])]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    log = told.with_name("log")
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group, so that what it started ends with it
        )
    try:
        code = process.wait(left)
    except subprocess.TimeoutExpired:
        code = SPENT
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return code, said[-1] if said else "it said nothing"


def reported(name: str, details: dict[str, dict[str, dict[str, Any]]], quick: bool, seconds: float) -> Report:
    """The figures, every outcome and what was not passed."""
    measured_on = (details["device"].get("device") or {}).get("found") or {}
    work = {
        "device": measured_on.get("name"),
        "quick": quick,
        "seconds": seconds,
        "checks": {part: tally(checks) for part, checks in details.items()},
    }
    report = Report(name, work, details=dict(details))
    report.errors = {
        f"{part}: {name}": f"{said['outcome']}: {said['reason']}"
        for part, checks in details.items()
        for name, said in checks.items()
        if said["outcome"] != "passed"
    }
    raced = {name: said["found"] for name, said in details["speed"].items() if said["outcome"] == "passed"}
    if raced:
        from tests.gpu.speed import rows

        report.rows = rows(raced)
        for name, found in raced.items():
            report.errors |= {f"speed: {name}: {absent}": why for absent, why in found["absent"].items()}
    return report


def tally(checks: dict[str, dict[str, Any]]) -> dict[str, int]:
    """How many checks had each outcome."""
    return dict(Counter(said["outcome"] for said in checks.values()))


if __name__ == "__main__":
    sys.exit(main())

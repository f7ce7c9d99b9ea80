"""W&B in trouble: what it costs training, and whether all steps reach it afterwards.

`python -m tests.chaos.wandb FOLDER` prints a row for each kind of trouble.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.trainer import conftest
from tests.trainer.wandb_server import Server

STEPS = 60
MODES = ("none", "ok", "500", "hang", "malformed", "dead helper")


def scenario_wandb(folder: Path, modes: tuple[str, ...] = MODES, repeats: int = 1) -> dict[str, Any]:
    """Train the same 60 steps without W&B and beside W&B in each kind of trouble, in turn, `repeats` times.

    Returns for each mode the median time of a step in seconds, its ratio to that without W&B, the slowest of the first
    five steps, the exit codes, the seconds from the last step to the end, and whether after `gemcutter sync` the steps
    on the server equal those executed, in order. With trouble from the start on; the helper is killed in the middle.
    """
    corpus = conftest.make_corpus(folder / "corpus", conftest.documents(400), 512)
    taken: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for turn in range(repeats):
        for mode in modes:
            home = folder / f"{mode} {turn}".replace(" ", "-")
            home.mkdir()
            lab = conftest.Lab(home, corpus, conftest.environment(home))
            try:
                taken[mode].append(_train(lab, mode))
            finally:
                lab.close()
    rows = {mode: _summary(each) for mode, each in taken.items()}
    base = rows[modes[0]]["step_seconds"]
    return {mode: row | {"ratio": row["step_seconds"] / base} for mode, row in rows.items()}


def scenario_tracker(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """Rows of `scenario_wandb`: in how many kinds of trouble the exit code and, after a sync, the steps are as without,
    and the ratio of step times."""
    found = scenario_wandb(folder, repeats=1 if short else 3)
    beside = {mode: row for mode, row in found.items() if mode != "none"}
    sound = sum(set(row["codes"]) == {0} and row["steps_equal"] for row in beside.values())
    rows: list[dict[str, Any]] = [
        {
            "figure": "W&B in trouble: exit code 0, and after a sync the steps that were taken",
            "ours": sound,
            "bar": len(beside),
            "met": sound == len(beside),
            "modes": found,
        }
    ]
    for mode, row in beside.items():
        rows.append({"figure": f"W&B {mode}: step time beside none", "ours": row["ratio"], "bar": None, "met": None})
    return rows


def _train(lab: conftest.Lab, mode: str) -> dict[str, Any]:
    with Server("ok" if mode in ("none", "dead helper") else mode).running() as server:
        lab.environment |= server.environment
        run = lab.start(
            "run", f"tracker={'none' if mode == 'none' else 'wandb'}", f"steps={STEPS}", "tokens_per_step=3072"
        )
        if mode == "dead helper":
            run.until(lambda: server.asked and run.lines and helpers(run.process.pid), "the helper")
            os.kill(helpers(run.process.pid)[-1], signal.SIGKILL)
        run.wait()
        ended = time.time()
        lines = run.lines
        assert len(lines) == STEPS, run.said
        told = [event for event in run.events if event["event"] == "tracker"]
        synced = None if mode == "none" else _sync(lab, server, lines)
    return {
        "code": run.code,
        "seconds": [line["step_seconds"] for line in lines],
        "end": ended - lines[-1]["time"],
        "synced": synced,
        "told": [event["said"] for event in told],
    }


def _sync(lab: conftest.Lab, server: Server, lines: list[dict[str, Any]]) -> bool:
    server.mode = "ok"
    subprocess.run(
        [sys.executable, "-P", "-m", "trainer", "sync", "run"],
        cwd=lab.folder,
        env=lab.environment,
        check=True,
        capture_output=True,
    )
    return server.steps("run") == [(line["attempt"], line["step"]) for line in lines]


def helpers(process: int) -> list[int]:
    """The processes that W&B's client started for a process that trains: its own child's children."""
    mirrors = [child for child in children(process) if "trainer.tracker.mirror" in _command(child)]
    return [child for mirror in mirrors for child in children(mirror)]


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return ""


def children(process: int) -> list[int]:
    """The processes that a process started and that run."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def _summary(each: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [taken for one in each for taken in one["seconds"][1:]]  # the first makes the buffers
    return {
        "step_seconds": statistics.median(seconds),
        "slowest_early": max(taken for one in each for taken in one["seconds"][1:6]),
        "codes": [one["code"] for one in each],
        "end_seconds": max(one["end"] for one in each),
        "steps_equal": all(one["synced"] in (True, None) for one in each),
        "told": each[0]["told"],
    }


if __name__ == "__main__":
    made = Path(sys.argv[1])
    made.mkdir(parents=True)
    for name, row in scenario_wandb(made, repeats=int(sys.argv[2]) if len(sys.argv) > 2 else 1).items():
        print(name, json.dumps(row))

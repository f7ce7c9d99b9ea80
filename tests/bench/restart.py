"""From a restart to the first step: a tiny model goes on from its checkpoint, every file warm, part by part.

Beside it stands a process that only starts and imports what training imports: nothing can be sooner. Among that is
torch._dynamo, which FSDP loads when it makes its first parameter. The bar is 1.3 times that, so a ratio of 1 / 1.3.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.report import Report, compare

ROOT = Path(__file__).parents[2]
BAR = 1.3
REPEATS = 7

# What `python -m trainer train` does, and the moments between: seconds since the kernel started the process.
PROBE = """
import gc, json, os, sys, time
import trainer.__main__ as command
if len(sys.argv) > 1:
    gc.disable()  # as the command does before it imports what follows
import trainer.train as train
from trainer.report.stopwatch import process_start

began, moments = process_start(), {}

def after(owner, name, part):
    inner = getattr(owner, name)
    def timed(*arguments, **keys):
        moments[part + " begins"] = time.monotonic() - began
        result = inner(*arguments, **keys)
        moments[part] = time.monotonic() - began
        if part == "first step":
            print(json.dumps(moments), flush=True)
            os._exit(0)
        return result
    setattr(owner, name, timed)

moments["imports"] = time.monotonic() - began
if len(sys.argv) > 1:
    import conf.compose
    after(conf.compose, "compose", "config")
    after(train, "choose", "join")
    after(train.Run, "load", "load")
    after(train, "build", "build")
    after(train.Report, "push", "first step")
    sys.exit(command.main("train", sys.argv[1:]))
import torch._dynamo
moments["all imports"] = time.monotonic() - began
print(json.dumps(moments))
"""


def bench(folder: Path, options: Sequence[str]) -> Report:
    """Measure restarts and mere imports by turns."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench restart", description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each, of which the median counts")
    given = parser.parse_args(options)
    report = Report("restart", {"model": "tiny, 2 layers of width 64", "repeats": given.repeats, "tracker": "none"})
    with tempfile.TemporaryDirectory(prefix="gemcutter-restart-") as scratch:
        measure(Path(scratch), given.repeats, report)
    return report


def measure(folder: Path, repeats: int, report: Report) -> None:
    """Fill the report from restarts of a run that is trained in a folder."""
    from tests.trainer.conftest import SMALL, documents, environment, make_corpus  # pytest's, and slow to import

    corpus, surroundings = make_corpus(folder / "corpus", documents(150), 480), environment(folder)
    overrides = [*SMALL, *corpus.overrides, "run_id=restart"]
    train = [sys.executable, "-P", "-m", "trainer", "train", *overrides, "steps=4"]
    subprocess.run(train, cwd=folder, env=surroundings, check=True, capture_output=True)
    starts: list[dict[str, float]] = []
    imports: list[dict[str, float]] = []
    for _ in range(repeats):
        imports.append(probe(folder, surroundings, []))
        starts.append(probe(folder, surroundings, [*overrides, "steps=400"]))
    first = statistics.median(start["first step"] for start in starts)
    least, early = (statistics.median(each[name] for each in imports) for name in ("all imports", "imports"))
    report.rows.append(
        compare("seconds to the first step", first, {"process start and imports": least}, 1 / BAR, lower_is_better=True)
    )
    report.rows.append(
        compare(
            "the same", first, {"without torch._dynamo": early}, lower_is_better=True
        )  # which FSDP cannot do without
    )
    report.details = {"parts": parts(starts), "first step": [round(start["first step"], 3) for start in starts]}
    report.details["imports alone"] = [round(each["all imports"], 3) for each in imports]


def parts(starts: list[dict[str, float]]) -> dict[str, float]:
    """The median seconds of each part, which follow each other; the load is within the build."""
    each = {
        "process start and imports": lambda at: at["imports"],
        "config": lambda at: at["config"] - at["imports"],
        "join": lambda at: at["join"] - at["config"],
        "build": lambda at: at["build"] - at["join"] - (at["load"] - at["load begins"]),
        "load": lambda at: at["load"] - at["load begins"],
        "first step": lambda at: at["first step"] - at["build"],
    }
    return {part: round(statistics.median(map(seconds, starts)), 3) for part, seconds in each.items()}


def probe(folder: Path, surroundings: dict[str, str], overrides: list[str]) -> dict[str, Any]:
    """What one process says of its moments."""
    command = [sys.executable, "-P", "-c", PROBE, *overrides]
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))

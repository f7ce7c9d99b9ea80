"""A flipped bit in one of four processes: found at the next check, located, and undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trainer.conftest import SMALL, Corpus, Recorded, documents, environment, make_corpus

EVERY = 4  # steps between checks and between checkpoints
RUN = (
    "steps=14", f"checkpoint.every={EVERY}", "checkpoint.keep_last=10", f"integrity.digest_every={EVERY}",
    "optim.ema=0.9",
)  # fmt: skip
MESHES = {
    "replica4": ("mesh.replica=4", "mesh.fsdp=1"),
    "replica2": ("mesh.replica=2", "mesh.fsdp=2"),
    "fsdp4": ("mesh.replica=1", "mesh.fsdp=4"),
}


@dataclass(frozen=True)
class Flip:
    """A bit that changes on a rank before a step, in a tensor of the state."""

    mesh: str
    rank: int
    step: int
    tensor: str
    found_after: int  # the step whose check finds it
    blamed: tuple[int, ...]


# Before step 7 copies tell, at the check of step 8: of four three, of two none, which of them is right. Between a check
# and the next update a process finds its own, and where nobody holds a copy that is all there is.
FLIPS = (
    Flip("replica4", 2, 7, "model.blocks.1.feed_forward.up.weight", 8, (2,)),
    Flip("replica4", 0, 6, "optimizer.exp_avg_sq.embedding.weight", 8, (0,)),
    Flip("replica4", 3, 9, "ema.blocks.0.attention.q.weight", 8, (3,)),
    Flip("replica2", 3, 7, "model.embedding.weight", 8, (1, 3)),
    Flip("replica2", 1, 9, "optimizer.exp_avg.blocks.0.attention.k.weight", 8, (1,)),
    Flip("fsdp4", 1, 9, "model.blocks.0.feed_forward.down.weight", 8, (1,)),
)


@dataclass
class Trained(Recorded):
    """A run that has ended."""

    code: int
    said: str

    def events_of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def incident(self) -> dict[str, Any]:
        """The last that it left for people."""
        file = max((self.folder / "incidents").glob("*.json"), key=lambda path: path.stat().st_mtime)
        return dict(json.loads(file.read_text()))


def train(folder: Path, corpus: Corpus, run_id: str, flipped: str, *changes: str, processes: int = 4) -> Trained:
    """A run in so many processes, a bit of which is flipped as `tests.trainer.flipped` says."""
    overrides = [*SMALL, *corpus.overrides, f"run_id={run_id}", *RUN, *changes]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tests.trainer.flipped", str(processes), "train", *overrides],
        cwd=folder,
        env=environment(folder) | {"FLIPPED": flipped},
        capture_output=True,
        text=True,
        check=False,
    )
    return Trained(folder / "runs" / run_id, done.returncode, done.stdout + done.stderr)


def undone(folder: Path, corpus: Corpus, flip: Flip, number: int, undisturbed: Trained) -> dict[str, Any]:
    """What a run does about a flipped bit."""
    flipped = f"{flip.rank}:{flip.step}:{flip.tensor}"
    run = train(folder, corpus, f"{flip.mesh}-{number}", flipped, *MESHES[flip.mesh])
    found = run.events_of("corruption")
    located = [{"what": flip.tensor, "ranks": list(flip.blamed)}]
    flaws = [{name: flaw[name] for name in ("what", "ranks")} for flaw in run.incident()["flaws"]] if found else []
    ours, theirs = run.tensors(), undisturbed.tensors()
    return {
        "flip": flipped,
        "mesh": flip.mesh,
        "found_after_step": found[0]["step"] if found else None,
        "detected": len(found) == 1 and found[0]["step"] == flip.found_after,
        "located": flaws == located,
        "identical": run.code == 0 and all(ours[name].equal(theirs[name]) for name in theirs),
        "said": found[0]["what"] if found else run.said[-2000:],
    }


def scenario_bit_flip(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """Runs on three meshes of four processes: undisturbed ones without an alarm, and one for each flipped bit."""
    with _corpus(folder) as corpus:
        flips = [flip for flip in FLIPS if not short or flip.mesh == "replica4"][: 1 if short else None]
        meshes = dict.fromkeys(flip.mesh for flip in flips)
        calm = {mesh: train(folder, corpus, mesh, "", *MESHES[mesh]) for mesh in meshes}
        done = [undone(folder, corpus, flip, number, calm[flip.mesh]) for number, flip in enumerate(flips)]
    alarms = sum(len(run.events_of("corruption")) + (run.code != 0) for run in calm.values())
    checks = sum("digest_seconds" in line for run in calm.values() for line in run.lines)
    seconds = [line["digest_seconds"] for run in calm.values() for line in run.lines if "digest_seconds" in line]
    figures = {"detected": "found at the next check", "located": "located", "identical": "undone, to the last bit"}
    return [
        *(
            {"figure": f"flipped bits {what}", "ours": (count := sum(one[name] for one in done)), "bar": len(done),
             "met": count == len(done), "flips": done}
            for name, what in figures.items()
        ),
        {"figure": f"false alarms in {checks} checks", "ours": alarms, "bar": 0, "met": alarms == 0 and checks > 0,
         "median_seconds_of_a_check": sorted(seconds)[len(seconds) // 2] if seconds else None},
    ]  # fmt: skip


@contextmanager
def _corpus(folder: Path) -> Iterator[Corpus]:
    """Token shards of invented text."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    yield make_corpus(folder / "corpus", documents(400), 512)

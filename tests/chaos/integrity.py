"""A flipped bit in one of four processes: found at the next check, located, and undone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Wanted:
    """A run to make, and what happens to it, as `tests.trainer.flipped` says."""

    run_id: str
    flipped: str
    changes: tuple[str, ...]
    processes: int = 4


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


def train(folder: Path, corpus: Corpus, wanted: Sequence[Wanted]) -> dict[str, Trained]:
    """Runs one after another, by their ids."""
    runs = [
        {
            "processes": each.processes,
            "flipped": each.flipped,
            "log": f"{folder}/{each.run_id}.log",
            "overrides": [*SMALL, *corpus.overrides, f"run_id={each.run_id}", *RUN, *each.changes],
        }
        for each in wanted
    ]
    (folder / "wanted.json").write_text(json.dumps(runs))
    command = [sys.executable, "-P", "-m", "tests.trainer.flipped", "wanted.json"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=True)
    return {
        each.run_id: Trained(folder / "runs" / each.run_id, code, Path(run["log"]).read_text())
        for each, run, code in zip(wanted, runs, json.loads(done.stdout), strict=True)
    }


def calm(mesh: str) -> Wanted:
    """An undisturbed run."""
    return Wanted(mesh, "", MESHES[mesh])


def disturbed(flip: Flip) -> Wanted:
    """The same, but for a bit."""
    return Wanted(f"{flip.mesh}-{flip.tensor}", f"{flip.rank}:{flip.step}:{flip.tensor}", MESHES[flip.mesh])


def outcome(flip: Flip, run: Trained, undisturbed: Trained) -> dict[str, Any]:
    """What became of a flipped bit."""
    found = run.events_of("corruption")
    flaws = run.incident()["flaws"] if found else []
    ours, theirs = run.tensors(), undisturbed.tensors()
    return {
        "flip": disturbed(flip).flipped,
        "mesh": flip.mesh,
        "found_after_step": found[0]["step"] if found else None,
        "detected": len(found) == 1 and found[0]["step"] == flip.found_after,
        # What follows from a number that is wrong, such as averages, is wrong too, but on no other process.
        "located": flip.tensor in {flaw["what"] for flaw in flaws}
        and all(flaw["ranks"] == list(flip.blamed) for flaw in flaws),
        "identical": run.code == 0 and all(ours[name].equal(theirs[name]) for name in theirs),
        "said": found[0]["what"] if found else run.said[-2000:],
    }


def scenario_bit_flip(folder: Path, short: bool = False) -> list[dict[str, Any]]:
    """Runs on meshes of four processes: undisturbed ones without an alarm, and one for each flipped bit."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = make_corpus(folder / "corpus", documents(400), 512)
    flips = FLIPS[:1] if short else FLIPS
    meshes = list(dict.fromkeys(flip.mesh for flip in flips))
    runs = train(folder, corpus, [*map(calm, meshes), *map(disturbed, flips)])
    done = [outcome(flip, runs[disturbed(flip).run_id], runs[flip.mesh]) for flip in flips]
    alarms = sum(len(runs[mesh].events_of("corruption")) + (runs[mesh].code != 0) for mesh in meshes)
    seconds = sorted(line["digest_seconds"] for mesh in meshes for line in runs[mesh].lines if "digest_seconds" in line)
    figures = {"detected": "found at the next check", "located": "located", "identical": "undone, to the last bit"}
    rows: list[dict[str, Any]] = []
    for name, what in figures.items():
        count = sum(one[name] for one in done)
        rows.append({"figure": f"flipped bits {what}", "ours": count, "bar": len(done), "met": count == len(done)})
    rows[0]["flips"] = done
    met = alarms == 0 and bool(seconds)
    rows.append({"figure": "false alarms of undisturbed runs", "ours": alarms, "bar": 0, "met": met})
    return [*rows[:3], rows[3] | {"checks": len(seconds), "median_seconds": seconds[len(seconds) // 2]}]

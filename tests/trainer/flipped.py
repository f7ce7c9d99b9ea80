"""Training in which a bit of one process changes, as memory that fails does it, or one computes wrongly for once.

    python -m tests.trainer.flipped RUNS.json

The file lists runs, which follow each other: `processes`, `overrides`, `log` (the file that gets what they say) and
`flipped`. That says `RANK:STEP:NAME`: before this step (the first is 1) a bit of this tensor of the state, as this
process holds it, is another; several are separated by commas. The name `forward` or `backward` stands for the loss or a
gradient of the step, when it is computed first, that is off by little. Prints the exit codes.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.batch import Batch
from tests.trainer.forked import exit_code
from trainer import step, train
from trainer.__main__ import main
from trainer.anomaly import integrity
from trainer.run import Run
from trainer.sharded import own_part


def flip(tensor: Tensor) -> None:
    """Change bit 3 of the number in the middle of what this process holds."""
    bits = own_part(tensor).detach().view(-1).view(torch.int32)
    bits[len(bits) // 2] ^= 8


def spoil(patch: pytest.MonkeyPatch, flipped: str) -> None:
    """Make training in this process as `flipped` says."""
    rank = os.environ.get("RANK", "0")
    due = [entry.split(":")[1:] for entry in flipped.split(",") if entry.split(":")[0] == rank]
    make_train_step, loss_of, made = train.make_train_step, step.loss_of, integrity.Integrity.__init__
    runs: list[Run] = []
    wrong: list[str] = []

    def seen(self: Any, job: Any, run: Run) -> None:
        runs.append(run)
        made(self, job, run)

    def make_spoilt(*parts: Any) -> Any:
        train_step = make_train_step(*parts)

        def spoilt_step(micro_batches: Sequence[Batch], *limits: Any) -> dict[str, Tensor]:
            for entry in [entry for entry in due if int(entry[0]) == runs[-1].step + 1]:
                due.remove(entry)  # happens once, also where the run comes by again
                if entry[1] in ("forward", "backward"):
                    wrong.append(entry[1])
                else:
                    flip(runs[-1].tensors()[entry[1]])  # type: ignore[arg-type]
            return train_step(micro_batches, *limits)

        return spoilt_step

    def spoilt_loss_of(*parts: Any) -> Tensor:
        loss = loss_of(*parts)
        if wrong:
            if wrong.pop() == "forward":
                return loss * (1 + 1e-6)
            loss.register_hook(lambda gradient: gradient * (1 + 1e-6))
        return loss

    patch.setattr(train, "make_train_step", make_spoilt)
    patch.setattr(step, "loss_of", spoilt_loss_of)
    patch.setattr(integrity.Integrity, "__init__", seen)


def as_rank(run: dict[str, Any]) -> None:
    """What each process of a run does."""
    log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, run["flipped"])
        sys.exit(main("train", run["overrides"]))


if __name__ == "__main__":
    runs = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([exit_code(run["processes"], functools.partial(as_rank, run)) for run in runs]))

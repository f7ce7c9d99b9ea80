"""Training in which some steps compute what a broken chip or a strange document makes of them.

The variable POISONED names the data of steps, by the number that these steps have as long as nothing is passed over
(the first is 1), and what the last process makes of it: `6:loss` infinite, `9:gradient` no number, `3-5:steep` a
gradient a hundred times too long, `7:high` a loss ten times too high.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from data_pipeline.batch import Batch
from trainer import step, train
from trainer.__main__ import main

ROWS = 12  # of a step, as conftest.SMALL has them


def poison(patch: pytest.MonkeyPatch, poisoned: str) -> None:
    """Make training in this process as `poisoned` says."""
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    kinds: dict[int, str] = {}
    for entry in poisoned.split(",") if last else []:
        steps, kind = entry.split(":")
        first, _, end = steps.partition("-")
        kinds |= dict.fromkeys(range(int(first), int(end or first) + 1), kind)
    make_train_step, loss_of = train.make_train_step, step.loss_of
    now: list[str | None] = [None]

    def make_poisoned(*parts: Any) -> Callable[..., dict[str, Tensor]]:
        train_step = make_train_step(*parts)

        def poisoned_step(micro_batches: Sequence[Batch], *limits: Any) -> dict[str, Tensor]:
            now[0] = kinds.get(micro_batches[-1].cursor.samples_done // ROWS)
            return train_step(micro_batches, *limits)

        return poisoned_step

    def poisoned_loss_of(*parts: Any) -> Tensor:
        loss = loss_of(*parts)
        if now[0] == "loss":
            return loss * float("inf")
        if now[0] == "high":
            return loss * 10
        if now[0] in ("gradient", "steep"):
            by = float("nan") if now[0] == "gradient" else 100
            loss.register_hook(lambda gradient: gradient * by)
        return loss

    patch.setattr(train, "make_train_step", make_poisoned)
    patch.setattr(step, "loss_of", poisoned_loss_of)


def as_rank() -> None:
    """What each process does."""
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, os.environ["POISONED"])
        sys.exit(main(sys.argv[1], sys.argv[2:]))

"""`python -m trainer` where in some steps the last process computes a number that is none, as a broken chip does.

The variable POISONED names these steps (the first is 1) and what is not finite in each: `6:loss,9:gradient`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from data_pipeline.batch import Batch
from trainer import step, train
from trainer.__main__ import main

ROWS = 12  # of a step, as conftest.SMALL has them
POISONED = dict(entry.split(":") for entry in os.environ["POISONED"].split(","))
LAST = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)

what = None
make_train_step, loss_of = train.make_train_step, step.loss_of


def make_poisoned_train_step(*parts: Any, **keys: Any):
    train_step = make_train_step(*parts, **keys)

    def poisoned(micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        global what
        what = POISONED.get(str(micro_batches[-1].cursor.samples_done // ROWS)) if LAST else None
        return train_step(micro_batches)

    return poisoned


def poisoned_loss_of(*parts: Any) -> Tensor:
    loss = loss_of(*parts)
    if what == "loss":
        return loss * float("inf")
    if what == "gradient":
        loss.register_hook(lambda gradient: gradient * float("nan"))
    return loss


train.make_train_step, step.loss_of = make_poisoned_train_step, poisoned_loss_of

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

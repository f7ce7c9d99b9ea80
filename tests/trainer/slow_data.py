"""`python -m trainer` where one process waits for its data, as if its storage were slow or gone.

The variable SLOW says which, from which micro-batch on and how many seconds for each: `rank,micro-batch,seconds`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator

from conf import schema
from conf.processes import end_with
from data_pipeline.batch import Batch
from trainer import train
from trainer.__main__ import main
from trainer.build import Parts
from trainer.run import Run

RANK, FIRST, SECONDS = os.environ["SLOW"].split(",")
micro_batches_from = train.micro_batches_from


def slow_micro_batches_from(job: schema.Job, run: Run, parts: Parts) -> Generator[Batch]:
    for number, batch in enumerate(micro_batches_from(job, run, parts)):
        if number >= int(FIRST) and os.environ.get("RANK", "0") == RANK:
            time.sleep(float(SECONDS))
        yield batch


train.micro_batches_from = slow_micro_batches_from

if __name__ == "__main__":
    end_with(os.getppid())  # bare torchrun, killed, would leave us
    sys.exit(main(sys.argv[1], sys.argv[2:]))

"""`python -m trainer` whose storage is slow: each read of a checkpoint takes a while, and one as long as it likes.

The variable SLOW says how slow: `seconds of a read,number of the one that does not end`. The time to start the
interpreter and to import is left out, as it depends on what else this machine does.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

from trainer.__main__ import main
from trainer.checkpoint.store import Folder
from trainer.report import stopwatch

SECONDS, LAST = map(float, os.environ["SLOW"].split(","))
read, numbers = Folder.read, itertools.count(1)


def slow_read(self: Folder, name: str, begin: int = 0, length: int | None = None) -> bytes:
    time.sleep(600 if next(numbers) == LAST else SECONDS)
    return read(self, name, begin, length)


Folder.read = slow_read
stopwatch.process_start = stopwatch.boot_seconds

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

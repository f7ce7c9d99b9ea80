"""Tasks for the tests of engines, which workers load by their names."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from conf.exits import DataError


def write(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A file made of the task's number, and a line in the log of what was begun."""
    number, log = task["number"], Path(task["log"])
    with log.open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    if task.get("fails"):
        raise DataError(f"task {number} reads what is no file of its kind")
    if task.get("kills") == "always" or (task.get("kills") == "once" and log.read_text().count(f"{number} ") == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(task.get("seconds", 0))
    (folder / "data.bin").write_bytes(hashlib.sha256(str(number).encode()).digest() * 1000)
    return {"number": number, "bytes": 32_000}

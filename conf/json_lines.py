"""Files of JSON lines that grow while processes come and go: a kill leaves half a line at most, one writes at a time.

Standard library only: training writes them, and so do launchers, which load no torch.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.exits import DataError

_LONGEST_LINE = 64 * 1024  # bytes; far above what we write


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines, none where it is missing. A last line that a kill cut short is left out.

    Raises DataError where a line is no JSON object.
    """
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    values = []
    for number, line in enumerate((line for line in lines if line.endswith("\n")), start=1):
        try:
            values.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {number} is not a JSON object ({error}): restore the file from a copy"
            ) from error
    return values


def append_line(path: Path, values: dict[str, Any]) -> None:
    """Add one line of JSON. What a kill left of a line before it is cut off, so that every line can be read.

    Raises DataError where the disk does not take it.
    """
    with writing(path), path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # processes of other ranks, and launchers, write ledgers too
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LONGEST_LINE))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
        file.write((json.dumps(values) + "\n").encode())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around writing a file of a run: raises DataError where the disk does not take it."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}): free space there or make it writable, and start again to go "
            "on from the last checkpoint"
        ) from error

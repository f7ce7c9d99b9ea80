"""How far metrics.jsonl has come elsewhere, by the number of its rows: what a new start goes on from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FILE = "wandb/sent.json"


@dataclass
class Sent:
    """The file `wandb/sent.json` of a run directory.

    run_id      whose it is; that of another run was copied with its directory and says nothing of this one
    before      rows that the server had of this id before this run directory began; None: not known yet
    on_server   rows known to be on the server
    settled     whether on_server is exact; else the server may have more
    in_files    rows up to which finished offline files hold what on_server lacks
    files       their folders under wandb/
    unfinished  the folder of an offline file that was not finished; its rows are written again
    exit_code   with which the last attempt ended
    """

    run_id: str
    before: int | None = None
    on_server: int = 0
    settled: bool = True
    in_files: int = 0
    files: list[str] = field(default_factory=list)
    unfinished: str | None = None
    exit_code: int = 0

    @staticmethod
    def read(run: Path, run_id: str) -> Sent:
        """What is known of a run, which may be nothing."""
        path = run / _FILE
        known = json.loads(path.read_text()) if path.is_file() else {}
        known.pop("format", None)
        return Sent(**known) if known.get("run_id") == run_id else Sent(run_id)

    def write(self, run: Path) -> None:
        temporary = run / f"{_FILE}.new"
        temporary.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps({"format": 1, **dataclasses.asdict(self)}))
        temporary.replace(run / _FILE)


class Rows:
    """The lines of a growing metrics.jsonl.

    read  lines given so far
    """

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self.read = path, 0, 0

    def new(self, most: int) -> Iterator[dict[str, Any]]:
        """Whole lines that were not given yet, up to so many."""
        for line in self._lines(most):
            yield json.loads(line)

    def skip(self, rows: int) -> int:
        """Pass over so many lines, or as many as there are; says how many."""
        return sum(1 for _ in self._lines(rows))

    def _lines(self, most: int) -> Iterator[bytes]:
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for _ in range(most):
                line = file.readline()
                if not line.endswith(b"\n"):  # the end, or half a line
                    return
                self._offset, self.read = self._offset + len(line), self.read + 1
                yield line

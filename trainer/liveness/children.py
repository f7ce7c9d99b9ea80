"""What the processes of a job on this host leave in a folder for their launcher: how they end, and that they live."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from conf.exits import HANG

_EVERY = 0.5  # seconds between looks
_SILENT = 5.0  # seconds without a heartbeat after which a process does not get on by itself, once another gave up
_LAST_RESORT = (
    10.0  # seconds after which the launcher ends by itself once no child is left: it may wait for a dead host
)


class Children:
    """While entered, a child that is silent for longer than it said it may be is killed, and counts as hung.

        <local rank>        exit code that a child declares before it ends
        <local rank>.beat   its process and how many seconds it may be silent, touched twice a second

    A process that is stopped, or holds the interpreter's lock for ever, cannot end itself.
    """

    def __init__(self, folder: Path, exit_code: Callable[[list[int]], int]) -> None:
        """`exit_code` is that of the launcher, from those of its children."""
        self._folder, self._exit_code = folder, exit_code
        self._seen = False
        self._killed: set[int] = set()
        self._heard: dict[Path, tuple[int, float]] = {}  # when its file was last written, and seen to be, by our clock
        self._alone_since: float | None = None
        self._looked = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="children", daemon=True)

    def __enter__(self) -> Children:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def codes(self) -> list[int]:
        """What the children declared, and 76 where one had to be killed."""
        said = [_read(path) for path in self._folder.iterdir() if not path.suffix]
        return [int(code) for code in said if code] + [HANG] * len(self._killed)

    def leave(self, *codes: int) -> None:
        """End the launcher at once, whatever its main thread waits for; `codes` count beside those of the children."""
        code = self._exit_code([*self.codes(), *codes])
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(code)

    def seen(self) -> bool:
        """Whether there ever were children that lived; those that start anew take back what others left."""
        with contextlib.suppress(FileNotFoundError):  # the launcher is about to end
            self._seen |= any(self._folder.iterdir())
        return self._seen

    def _watch(self) -> None:
        while not self._over.wait(_EVERY):
            now = time.monotonic()
            self.seen()
            if now - self._looked > _SILENT:  # it is this process that was stopped, and its children with it
                self._heard = {}
            self._looked = now
            alive = [self._look(path, now) for path in self._folder.glob("*.beat")]
            if any(alive) or not alive:
                self._alone_since = None
            elif self._alone_since is None:
                self._alone_since = now
            elif now - self._alone_since > _LAST_RESORT and self.codes():
                self.leave()

    def _look(self, path: Path, now: float) -> bool:
        """Whether a child lives; kill it where it was silent for too long."""
        try:
            pid, _, allowed = path.read_text().partition(" ")
            written = path.stat().st_mtime_ns
        except FileNotFoundError:  # a child that starts has just taken it back
            return True
        before = self._heard.get(path)
        if before is None or before[0] != written:
            self._heard[path] = before = written, now
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False
        silent = now - before[1]
        if silent > float(allowed) or (silent > _SILENT and HANG in self.codes()):
            if int(pid) not in self._killed:
                print(f"gemcutter train: process {pid} was silent for {silent:.0f} s, and is killed", file=sys.stderr)
            self._killed.add(int(pid))
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(pid), signal.SIGKILL)
        return True


def _read(path: Path) -> str:
    """What a child wrote; nothing where one that starts has just taken it back."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""

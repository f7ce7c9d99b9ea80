"""Training that is started again after a failure, as often as the class of the failure allows.

Every start is a process of its own, of which nothing is left in the next.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from conf import schema
from conf.exits import DataError, failure
from conf.json_lines import append_line, read_lines
from conf.processes import ignore, stop_signals

_LONGEST_PAUSE = 60.0  # seconds


class Stopping:
    """While entered, `stop_signals` are kept, and passed on to the process that `send` leads to."""

    def __init__(self) -> None:
        self.asked = False
        self.send: Callable[[int], None] | None = None

    def __enter__(self) -> Stopping:
        self._previous = {number: signal.signal(number, self._received) for number in stop_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.asked:  # we end with the child
            ignore()

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.send is not None:
            self.send(number)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond a signal."""
        deadline = time.monotonic() + seconds
        while not self.asked and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


def keep_running(job: schema.Job, start: Callable[[Stopping], int]) -> int:
    """Start training until it ends as it should, is asked to stop, or a budget is used up; returns the last exit code.

    Failures of a class count in a row, and from anew once a step was saved that no attempt had saved before: what is
    done again after a return, or was put aside, is no progress.
    """
    run, budgets = schema.run_directory(schema.run_id(job)), job.launch.restarts
    failed: Counter[str] = Counter()
    reached = _sound_step(run)
    with Stopping() as stopping:
        while True:
            code = start(stopping)
            kind = failure(code)
            if kind is None or stopping.asked:
                return code
            if (step := _sound_step(run)) > reached:
                reached = step
                failed.clear()
            failed[kind] += 1
            budget = getattr(budgets, kind)
            left = budget - failed[kind]
            if left < 0:
                if budget:
                    print(
                        f"gemcutter train: ended with exit code {code} ({kind}), and is not started again: "
                        f"launch.restarts.{kind}={budget}",
                        file=sys.stderr,
                    )
                return code
            pause = 0.0 if failed.total() == 1 else min(2.0 ** (failed.total() - 2), _LONGEST_PAUSE)
            print(
                f"gemcutter train: ended with exit code {code} ({kind}), and is started again in {pause:.0f} s; {left} "
                f"of launch.restarts.{kind}={budget} are left without a checkpoint of a later step",
                file=sys.stderr,
                flush=True,
            )
            _record(run, code=code, failure=kind, left=left, pause=pause, host=socket.gethostname())
            stopping.pause(pause)
            if stopping.asked:
                return code


def _sound_step(run: Path) -> int:
    """The last step whose checkpoint stands, as far as the ledger says; 0: none."""
    saved: set[tuple[int, str | None]] = set()  # step and place
    for event in read_lines(run / "events.jsonl"):
        step, last = event.get("step"), None
        match event["event"]:
            case "checkpoint":
                saved.add((event["step"], event.get("place")))
            case "save_failed":  # of a step that was committed: it was read back, and is broken
                saved.discard((event["step"], event.get("place")))
            case "quarantined":
                saved = {each for each in saved if each[0] != step}
            case "corruption":
                last = event.get("sound")
            case "rollback":
                last = event["to_step"]
        if last is not None:
            saved = {each for each in saved if each[0] <= last}
    return max((step for step, _ in saved), default=0)


def _record(run: Path, **facts: Any) -> None:
    """Add a restart to the ledger. A disk that does not take it keeps nobody from going on."""
    ledger = run / "events.jsonl"
    attempts = [event["attempt"] for event in read_lines(ledger)]
    try:
        append_line(ledger, {"time": time.time(), "attempt": max(attempts, default=0), "event": "restart", **facts})
    except DataError as error:
        print(f"gemcutter train: the restart is not in the ledger: {error}", file=sys.stderr)

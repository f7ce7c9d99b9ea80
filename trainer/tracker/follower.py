"""Keeps a mirror of the run in W&B going, whatever happens to it, and bothers nobody.

Training writes metrics.jsonl and looks at most at a queue; a thread of this module starts the process that follows that
file (`trainer.tracker.mirror`), hears what it says, and starts it anew when it fails, with growing pauses.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.files import redacted
from trainer.liveness.stop import StopSignal
from trainer.tracker.sent import Rows, Sent

START_SECONDS = 60.0  # for the client to start; it gives up after 20 by itself, if it does not hang
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds before a new start
# For the end. W&B may still be uploading what it was given last, and nobody waits for us but the user.
END_SECONDS = 30.0
AWAY_SECONDS = 15.0  # of these while it has not even started
STOP_SECONDS = 6.0  # when asked to stop: the run is saved, and whoever asked kills before long
FILE_SECONDS = 10.0  # to write an offline file


class Follower:
    """tracker=wandb and tracker=offline.

    whole  once closed: whether W&B has every row
    """

    def __init__(self, run: Path, run_id: str, config: dict[str, Any], stop: StopSignal) -> None:
        self._run, self._run_id, self._config, self._stop = run, run_id, redacted(config), stop
        self._online = config["tracker"]["name"] == "wandb"
        self._news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of what follows, up to the thread
        self._process: subprocess.Popen[str] | None = None
        self._kept: dict[int, dict[str, Any]] = {}  # not yet with W&B
        self._keeps = 0
        self._close: dict[str, Any] | None = None
        self._deadlines: list[threading.Timer] = []
        self._ready = False  # the process that runs has begun to show rows
        self._failing = False  # it did not begin, or ended, and that was said
        self._closing = threading.Event()
        self.whole = False
        self._thread = threading.Thread(target=self._follow, name="tracker", daemon=True)
        self._thread.start()

    def news(self) -> list[dict[str, Any]]:
        news = []
        while not self._news.empty():
            news.append(self._news.get())
        return news

    def keep(self, kind: str, name: str, files: Sequence[Path]) -> None:
        with self._lock:
            self._keeps += 1
            order = {"number": self._keeps, "kind": kind, "name": name, "files": [str(file) for file in files]}
            self._kept[self._keeps] = order
            self._order({"keep": order})

    def close(self, failed: bool | None) -> None:
        """Show the rest, within a bound. `failed` is None where the run ended before and stays as it was."""
        stopping = self._stop.asked_by is not None
        seconds = STOP_SECONDS if stopping else END_SECONDS
        with self._lock:
            self._closing.set()
            self._close = {"failed": failed, "seconds": seconds}
            self._order({"close": self._close})
            self._end_after(seconds if self._ready else 0 if stopping and self._failing else min(seconds, AWAY_SECONDS))
        # Every process that it waits for has a deadline, but one that waits for a dead disk outlives even a kill.
        self._thread.join(seconds + AWAY_SECONDS + FILE_SECONDS)

    def _order(self, order: dict[str, Any]) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; the thread sees that too, and gives the next one the same orders

    def _end_after(self, seconds: float) -> None:
        """Kill the process that runs, if it still does then."""
        if self._process is not None:
            timer = threading.Timer(seconds, self._process.kill)
            timer.daemon = True
            timer.start()
            self._deadlines.append(timer)

    def _follow(self) -> None:
        pause, tries_left = 0.0, True
        while tries_left:
            began_closing = self._closing.is_set()
            confirmed = self._mirror(self._online)
            if self.whole:
                return
            if self._closing.is_set() and not began_closing:  # it was there at the end, and did what it could
                break
            pause = FIRST_PAUSE if confirmed else min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)
            tries_left = not began_closing
            if self._closing.wait(pause) and self._stop.asked_by is not None:
                break
        if self._online and Sent.read(self._run, self._run_id).settled:
            self._mirror(online=False)
        elif self._online:
            self._owe()

    def _mirror(self, online: bool) -> bool:
        """Run the process once, until it ends; says whether W&B confirmed rows meanwhile."""
        try:
            process = self._start(online)
        except OSError as error:  # no memory for a process, no place for its log
            self._failed(False, str(error))
            return False
        confirmed, why = False, ""
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                said = json.loads(line)
                confirmed |= "confirmed" in said
                why = said.get("failed", why)
                self.whole |= said.get("whole", False)
                self._heard(said)
            code = process.wait()
            with self._lock:
                self._process, ready, self._ready = None, self._ready, False
                self._forget_deadlines()
        if code != 0 or not self._closing.is_set():
            self._failed(ready, why or f"its client ended with {code}, see {self._log}")
        elif not online:
            self.whole = True
        return confirmed

    @property
    def _log(self) -> Path:
        return self._run / "wandb" / "mirror.log"

    def _start(self, online: bool) -> subprocess.Popen[str]:
        what = {
            "run": str(self._run),
            "run_id": self._run_id,
            "online": online,
            "config": self._config,
            "process": os.getpid(),
        }
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as log, self._lock:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainer.tracker.mirror"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # signals to the group of training are not meant for it
            )
            self._order(what)
            for kept in self._kept.values():
                self._order({"keep": kept})
            if self._close is None:
                self._end_after(START_SECONDS)
            else:
                seconds = min(self._close["seconds"], AWAY_SECONDS if online else FILE_SECONDS)
                self._order({"close": self._close | {"seconds": seconds}})
                self._end_after(seconds)
            return self._process

    def _heard(self, said: dict[str, Any]) -> None:
        if "news" in said:
            self._news.put(said["news"])
        if "stop" in said:
            self._stop.ask("W&B")
        with self._lock:
            self._kept.pop(said.get("kept", 0), None)
            if "ready" in said:
                self._ready, self._failing = True, False
                if self._close is None:
                    self._forget_deadlines()

    def _forget_deadlines(self) -> None:
        for timer in self._deadlines:
            timer.cancel()
        self._deadlines.clear()

    def _failed(self, ready: bool, why: str) -> None:
        if not self._failing:
            what = "W&B's client failed" if ready else "W&B does not answer"
            self._news.put(
                {
                    "state": "failed",
                    "said": f"{what} ({why}): training goes on, metrics.jsonl keeps all rows, and it is started again, "
                    "to send what W&B lacks",
                }
            )
        self._failing = True

    def _owe(self) -> None:
        rows = Rows(self._run / "metrics.jsonl")
        written = rows.skip(sys.maxsize)
        there = Sent.read(self._run, self._run_id).on_server
        self._news.put(
            {
                "state": "behind",
                "said": f"W&B has confirmed {there} of {written} rows: the next attempt sends what it lacks, or "
                f"`gemcutter sync {self._run_id}`",
            }
        )

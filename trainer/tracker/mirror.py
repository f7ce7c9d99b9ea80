"""`python -m trainer.tracker.mirror`: shows the rows of a run's metrics.jsonl in W&B. Only this module imports wandb.

A process of its own, since the client can hang, raise and abort, and waits for its helper when the interpreter ends. It
is started anew after any failure, so it does not try to survive one. W&B has one history row for each row of
metrics.jsonl, in that order: where to go on is what the server says when it is asked for the run.

Takes lines of JSON: first what to show, then orders, `{"keep": ...}` and `{"close": ...}`; the end of the input means
that training was killed. Gives lines of JSON: `{"news": ...}`, `{"ready": true}`, `{"kept": n}`, `{"confirmed": true}`
when the server has more, `{"stop": true}` when somebody presses Stop, `{"whole": true}` when the server has all.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from conf.processes import STOP_SIGNALS
from trainer.tracker.sent import Rows, Sent

LOOK_SECONDS = 0.5  # between looks for new rows
# Between questions to the server how many rows it has: soon after anything happened, then ever more rarely, down to as
# often as the client looks for Stop.
FIRST_CHECK_SECONDS, CHECK_SECONDS = 2.0, 15.0
ANSWER_SECONDS = 4  # after which the server counts as away
STUCK_SECONDS = 180.0  # without a new row on a server that answers, after which the client is started anew
ORPHAN_SECONDS = 20.0  # for the end, when training was killed; and to come to that, where the client hangs
_AT_ONCE = 1000  # rows between looks for orders
_LONGEST_ARTIFACT = 128  # characters of a name, which a project's runs share
_NO_VALUE = ("step", "attempt", "time")  # of a row; shown under other names

_answers = -1  # the descriptor of the output; the client may print to descriptor 1


def main() -> None:
    """Show a run until told to close."""
    global _answers
    _answers = os.dup(1)
    os.dup2(2, 1)
    sys.excepthook = _fail
    for number in STOP_SIGNALS:  # for training, which then closes us
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends us; whoever started us may have ignored it
    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    what = orders.get()
    if "run_id" not in what:
        return
    with _alone(Path(what["run"])):
        Mirror(what).follow(orders)
    leave(0)


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    say(failed=f"{kind.__name__}: {error}")
    leave(1)


def leave(code: int) -> None:
    """End at once: the client's own end waits for its helper, which may hang. The helper ends when we have."""
    sys.stderr.flush()
    os._exit(code)


def say(**message: Any) -> None:
    """Tell the process that trains."""
    with suppress(BrokenPipeError):  # it was killed
        os.write(_answers, (json.dumps(message) + "\n").encode())


def tell(state: str, said: str) -> None:
    """Something for the ledger and the terminal."""
    say(news={"state": state, "said": said})


def stop_asked() -> None:  # of the module, since the client copies its settings deeply
    """Somebody pressed Stop in W&B."""
    say(stop=True)


def _listen(orders: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    # Nobody is left who would kill a client that hangs. The kernel does it, whoever holds the interpreter; once the
    # order is heard, `_close` sets the end anew.
    signal.setitimer(signal.ITIMER_REAL, ORPHAN_SECONDS)
    orders.put({"close": {"failed": True, "seconds": ORPHAN_SECONDS}})


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """While the mirror of a killed attempt still sends, wait: two would send the same rows."""
    (run / "wandb").mkdir(exist_ok=True)
    with (run / "wandb" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Mirror:
    """One start of the client."""

    def __init__(self, what: dict[str, Any]) -> None:
        import wandb
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        self._wandb, self._no_answer = wandb, (wandb.Error, WandbApiFailedError, ValueError)
        self._path, self._run_id, self._online = Path(what["run"]), what["run_id"], what["online"]
        self._sent = Sent.read(self._path, self._run_id)
        self._rows = Rows(self._path / "metrics.jsonl")
        self._shown = 0  # rows given to the client, or that the server had
        self._away = False  # the server, when last asked
        self._progress = time.monotonic()
        keys = what["config"]["tracker"]
        self._run = wandb.init(
            project=keys["project"],
            entity=keys["entity"],
            group=keys["group"],
            tags=keys["tags"],
            id=self._run_id,
            name=self._run_id,
            resume="allow",
            dir=str(self._path),
            config=what["config"],
            mode="online" if self._online else "offline",
            settings=wandb.Settings(
                console="off",
                silent=True,
                stop_fn=stop_asked,
                program="gemcutter train",
                x_stats_pid=what["process"],
                x_transaction_log_flush_interval=1.0,  # by default a kill takes the last 15 seconds
                x_file_stream_transmit_interval=1.0,  # as above, where all of this machine is killed
                x_file_stream_retry_max=100_000,  # until the server is back, however long that takes
                x_file_stream_retry_wait_max_seconds=20.0,
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", "20")),
            ),
        )
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        self._seen: Any = None  # the run as the client's other interface sees it, which asks the server
        if self._sent.unfinished:  # a kill cut it short; its rows are shown again
            shutil.rmtree(self._path / "wandb" / self._sent.unfinished, ignore_errors=True)
            self._sent.unfinished = None
        if self._online:
            self._begin_online()
        else:
            self._begin_offline()
        say(ready=True)

    def _begin_online(self) -> None:
        """Go on from the first row that the server lacks."""
        sent, there = self._sent, self._run.starting_step
        if not self._run.url:
            raise RuntimeError("the server's answer does not say which run this is")
        if sent.before is None:
            # Rows of this id that we know nothing of: of a directory that was removed, or our files, sent by hand.
            by_hand = sent.in_files if sent.files and all(self._mark(name).exists() for name in sent.files) else 0
            sent.before = max(0, there - by_hand)
        # Where less is there than once was, all is sent again; where metrics.jsonl has less, it goes after the rest.
        self._shown = self._rows.skip(there - sent.before) if there >= sent.before else 0
        sent.before = there - self._shown
        sent.on_server, sent.settled = self._shown, False
        sent.write(self._path)
        has = f", which has {self._shown} rows of it" if self._shown else ""
        tell("online", f"W&B shows this run at {self._run.url}{has}")

    def _begin_offline(self) -> None:
        """Go on from the first row that is neither on the server nor in a file."""
        sent = self._sent
        sent.unfinished = self._folder
        sent.write(self._path)
        self._shown = self._rows.skip(max(sent.on_server, sent.in_files))

    @property
    def _folder(self) -> str:
        return Path(self._run.dir).parent.name

    def _mark(self, folder: str) -> Path:
        """The file by which `wandb sync` knows that a folder needs no sending."""
        return self._path / "wandb" / folder / f"run-{self._run_id}.wandb.synced"

    def follow(self, orders: queue.Queue[dict[str, Any]]) -> None:
        """Show rows until told to close."""
        pause = FIRST_CHECK_SECONDS
        check_at = time.monotonic() + pause
        while True:
            more = self._show()
            if self._online and time.monotonic() >= check_at:
                away = self._away
                self._check()
                pause = min(2 * pause, CHECK_SECONDS) if away == self._away else FIRST_CHECK_SECONDS
                check_at = time.monotonic() + pause
            try:
                order = orders.get(timeout=0 if more else LOOK_SECONDS)
            except queue.Empty:
                continue
            if "keep" in order:
                self._keep(**order["keep"])
            else:
                self._close(**order["close"])
                return

    def _show(self) -> bool:
        """Give new rows to the client; says whether there are more."""
        before = self._shown
        for row in self._rows.new(_AT_ONCE):
            values = {
                name: value for name, value in row.items() if name not in _NO_VALUE and isinstance(value, int | float)
            }
            values = {name: value for name, value in values.items() if math.isfinite(value)}
            # No `step=`: W&B counts rows, which never goes back when training does.
            step = {"trainer/step": row["step"], "trainer/attempt": row["attempt"], "_timestamp": row["time"]}
            self._run.log(values | step)
            self._shown += 1
        return self._shown - before == _AT_ONCE

    def _keep(self, number: int, kind: str, name: str, files: list[str]) -> None:
        artifact = self._wandb.Artifact(f"{name}-{self._run_id}"[:_LONGEST_ARTIFACT], type=kind)
        for file in files:
            artifact.add_file(file)
        self._run.log_artifact(artifact)
        say(kept=number)

    def _count(self) -> int:
        """Rows of this run that the server has. Raises whatever the client raises where it does not say."""
        sent = self._sent
        assert sent.before is not None
        if self._seen is None:
            api = self._wandb.Api(timeout=ANSWER_SECONDS)
            self._seen = api.run(f"{self._run.entity}/{self._run.project}/{self._run_id}")
        there = int(self._seen.lastHistoryStep) + 1
        if (there == 0 and sent.before + sent.on_server > 0) or there - sent.before > self._shown:
            raise ValueError(f"it says that it has {there} rows, it got {sent.before + self._shown}")
        return max(there - sent.before, sent.on_server)

    def _check(self) -> bool:
        """Ask the server how far it is, and tell where that it answers has changed; says whether it answered."""
        try:
            there = self._count()
        except self._no_answer as error:
            if not self._away:
                tell(
                    "away",
                    f"W&B does not answer ({error}): training goes on, metrics.jsonl keeps all rows; "
                    f"W&B has {self._sent.on_server}, the others follow when it answers",
                )
            self._away, self._progress = True, time.monotonic()
            return False
        if self._away:
            tell("back", f"W&B answers again and has {there} rows of {self._shown}")
            self._away, self._progress = False, time.monotonic()
        if there > self._sent.on_server or there == self._shown:
            self._progress = time.monotonic()
            say(confirmed=True)
        self._confirm(there)
        if time.monotonic() - self._progress > STUCK_SECONDS:
            raise RuntimeError(f"W&B answers, but has had {there} rows of {self._shown} for {STUCK_SECONDS:.0f} s")
        return True

    def _confirm(self, there: int) -> None:
        sent = self._sent
        sent.on_server, sent.settled = there, False
        if sent.files and there >= sent.in_files:  # sent by hand now, they would be there twice
            for folder in sent.files:
                with suppress(FileNotFoundError):  # removed by hand
                    self._mark(folder).touch()
            sent.files = []
        sent.write(self._path)

    def _close(self, failed: bool | None, seconds: float) -> None:
        """The end, within so many seconds; `failed` is None where it stays as it was."""
        until = time.monotonic() + seconds
        signal.setitimer(signal.ITIMER_REAL, seconds)  # whatever hangs
        while self._show():
            pass
        self._sent.exit_code = self._sent.exit_code if failed is None else int(failed)
        self._sent.write(self._path)
        if not self._online:
            self._run.finish(exit_code=self._sent.exit_code)
            self._finish_file()
            return
        if not self._check():
            leave(0)  # `finish` would wait for the server
        self._run.finish(exit_code=self._sent.exit_code)
        while not (self._check() and self._sent.on_server == self._shown) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        self._sent.settled = self._sent.on_server == self._shown
        self._sent.write(self._path)
        say(whole=self._sent.settled)

    def _finish_file(self) -> None:
        sent = self._sent
        first, sent.unfinished = max(sent.on_server, sent.in_files) + 1, None
        sent.in_files = self._shown
        sent.files.append(self._folder)
        sent.write(self._path)
        folder = self._path / "wandb" / self._folder
        send = f"`wandb sync {folder}`" if sent.settled else f"`gemcutter sync {self._run_id}`"
        tell("offline", f"rows {first} to {self._shown} are in {folder}: {send} sends them to W&B")


if __name__ == "__main__":
    main()

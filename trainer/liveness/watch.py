"""Who hangs: a thread that sees when this process stands still, says which one did not arrive, and ends it.

A process waits for the others in every step. So when one stands still all do, and each judges by itself, by the same
heartbeats; the first to come to a verdict writes it down for all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from conf import schema
from conf.exits import ERRORS, HANG, LOST, DataError, LostError, declare, for_launcher
from trainer.backend import Backend
from trainer.build import Parts
from trainer.liveness.heartbeat import INTERVAL, SILENT, Beat, Heartbeats
from trainer.report import Stopwatch
from trainer.report.terminal import in_words
from trainer.run import Run

FACTOR, FLOOR = 10, 300.0  # of the longest wait so far, and the shortest deadline, seconds, where none is configured
_STEPPING = ("step", "data")  # activities of a step, whose time can be measured; all others take what they take
_SETTLING_STEPS = 3  # first steps, in which things are compiled
_LEAVING_SECONDS = 30.0  # that a process which lost another may take to close what it has open
_LOOK = 0.5  # seconds between looks at the main thread
_PAUSE_SECONDS = 5.0  # a look that comes so late says that the whole process was paused, and no time of its own went by

# A straggler waits for its data twice as long as the median, and that costs a tenth of the time of all.
_SLOW_FACTOR, _SLOW_SHARE = 2.0, 0.1
_SLOW_STEPS, _SLOW_SECONDS, _SLOW_AGAIN = 20, 10.0, 600.0  # seen over so many steps and seconds; told again after


@dataclass(frozen=True)
class Verdict:
    """Who did not arrive, as far as can be known: `ranks` is empty where it is the network or nobody of ours."""

    ranks: list[int]
    host: str
    activity: str
    step: int
    why: str


def judge(beats: dict[int, Beat], silent: list[int], me: Beat) -> Verdict:
    """Who keeps the others waiting, from the last heartbeats of all."""
    guilty = [beats[rank] for rank in silent if not beats[rank].lost] or [beats[rank] for rank in silent]
    if guilty:
        why = "no heartbeat came from there: a dead process or host, or a cut link"
        if {beat.state() for beat in guilty} == {"T"}:
            why = "the process is stopped, as by SIGSTOP"
        elif {beat.state() for beat in guilty} == {"X"}:
            why = "the process has died"
        else:
            missing = {beat.host for beat in guilty}
            if len(missing) == 1 and all(beat.rank in silent for beat in beats.values() if beat.host in missing):
                why = "no heartbeat came from any process of that host: it is dead, or the link to it is cut"
        return _verdict(guilty, why)
    least, most = (f(beat.moves for beat in beats.values()) for f in (min, max))
    if least < most:
        behind = [beat for beat in beats.values() if beat.moves == least]
        return _verdict(behind, "it lives and does not get on, and the others wait for it")
    if len(beats) < 2:
        return _verdict([me], "this process lives and does not get on: its stack shows where")
    return Verdict([], me.host, me.activity, me.step, "all live and wait at the same place: the network between them")


def _verdict(guilty: list[Beat], why: str) -> Verdict:
    hosts = ", ".join(sorted({beat.host for beat in guilty}))
    return Verdict([beat.rank for beat in guilty], hosts, guilty[0].activity, guilty[0].step, why)


class Watch:
    """While entered, this process sends heartbeats, and ends with 76 where it stands still for longer than may be."""

    def __init__(self, job: schema.Job, backend: Backend, clock: Stopwatch) -> None:
        self._keys, self._clock, self._processes = job.hang, clock, backend.processes
        self._folder = schema.run_directory(schema.run_id(job)) / "stacks"
        self._run: Run | None = None
        self._parts: Parts | None = None
        self._first = 0  # step that steps began with, or began again
        self._waits: deque[float] = deque([0.0], maxlen=1000)
        self._activity, self._moves, self._still = "start", 0, 0.0  # at the last look
        self._looked, self._resumed = time.monotonic(), 0.0
        self._allowed: float | None = None  # silence that the launcher knows of
        self._own: dict[str, Any] = {}  # what the last heartbeats say of how this process ends
        self._leave: tuple[float, int] | None = None
        self._slow: tuple[float, int, dict[int, Beat]] | None = None
        self._slow_said: dict[int, float] = {}
        self._beats = Heartbeats(backend.store, self._processes.rank, self._processes.size, self._beat)
        self._ending = threading.Lock()  # one of main thread and watch judges
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        if self._processes.size > 1:
            self._beats.start()
            if self._processes.rank == 0:
                self._beats.listen()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._beats.stop()

    @contextmanager
    def over(self, run: Run, parts: Parts) -> Iterator[None]:
        """Around the steps of a run. Raises as `blaming` does."""
        self.begin(run)
        self._run, self._parts = run, parts
        try:
            with self.blaming():
                yield
        finally:
            self._run = None  # what follows, such as the end of an upload, takes what it takes

    def begin(self, run: Run) -> None:
        """Steps begin where the run stands: the first of them take as long as they take."""
        self._first = run.step

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Around work of several processes: what ends this one is told to the others.

        Raises LostError where it is another that was lost, with the exit code of that one where it had a fault.
        """
        try:
            yield
        except BaseException as error:
            if self._processes.size > 1 and not self._own:  # else it was told on its way here
                if _of_network(error):
                    raise self._lost(error) from error
                fault = str(error) if isinstance(error, ERRORS) else f"{type(error).__name__}: {error}"
                self._own = {"code": getattr(error, "code", LOST), "fault": fault[:1000]}
                self._beats.send()
            raise

    def _beat(self) -> Beat:
        clock, run = self._clock, self._run  # read once: the main thread changes it
        return Beat(
            self._processes.rank,
            socket.gethostname(),
            os.getpid(),
            clock.activity,
            0 if run is None else run.step + 1,
            clock.moves,
            time.monotonic() - clock.since,
            clock.seconds().get("data", 0.0),
            **self._own,
        )

    def _watch(self) -> None:
        while not self._over.wait(_LOOK):
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked > _PAUSE_SECONDS:
            self._resumed = now
        self._looked = now
        moves, activity = self._clock.moves, self._clock.activity
        if moves != self._moves and self._activity in _STEPPING and not self._settling():
            self._waits.append(self._still + _LOOK)  # how long it stood still before it moved, to within a look
        self._activity, self._moves = activity, moves
        self._still = now - max(self._clock.since, self._resumed)
        key, deadline = self._deadline(activity)
        self._touch(deadline + 3 * _LOOK)  # who can still say what is wrong shall say it first
        if self._still > deadline - SILENT - 2 * INTERVAL and self._still > INTERVAL:
            self._beats.listen()
        elif self._processes.rank == 0:
            self._look_for_stragglers(now)
        elif not self._ending.locked():
            self._beats.rest()
        if self._still > deadline and self._ending.acquire(blocking=False):
            self._hang(key, deadline)
        if self._leave is not None and now > self._leave[0]:
            os._exit(self._leave[1])

    def _touch(self, allowed: float) -> None:
        """Say to `trainer.elastic` that this process lives, and for how many seconds it may be silent."""
        if (path := for_launcher(".beat")) is None:
            return
        if allowed != self._allowed:
            with contextlib.suppress(OSError):  # a full disk: then the launcher goes by what it heard before
                whole = path.with_suffix(".written")  # one that is stopped in the midst of this must not leave a half
                whole.write_text(f"{os.getpid()} {allowed}")
                os.replace(whole, path)
                self._allowed = allowed
        with contextlib.suppress(OSError):
            os.utime(path)  # which needs no room

    def _settling(self) -> bool:
        """Whether the step that is on its way may take as long as it takes: it compiles."""
        run, parts = self._run, self._parts
        if run is None or parts is None or run.step < self._first + _SETTLING_STEPS:
            return True
        step, rows = run.step, parts.ramp.rows
        return rows(step) != rows(step - 1)

    def _deadline(self, activity: str) -> tuple[str, float]:
        """The key by which a process in this activity may stand still, and for how many seconds."""
        start, seconds = self._keys.start_seconds, self._keys.seconds
        if activity not in _STEPPING or self._settling():
            return ("hang.start_seconds", start) if start >= (seconds or 0.0) else ("hang.seconds", seconds or 0.0)
        return "hang.seconds", seconds or max(FLOOR, FACTOR * max(self._waits))

    def _hang(self, key: str, deadline: float) -> None:
        """Say who hangs, and end this process."""
        # What follows writes to the run's disk, which may be what hangs.
        last_resort = threading.Timer(_LEAVING_SECONDS, os._exit, (HANG,))
        last_resort.daemon = True
        last_resort.start()
        code = HANG
        try:
            self._dump_stacks()
            verdict = self._find_out(after=time.monotonic() - 1.5 * INTERVAL)
            if fault := self._fault_of_another():
                code, verdict = fault
                print(f"gemcutter train: {_ending_with(verdict)}", file=sys.stderr, flush=True)
            else:
                self._tell("hang", verdict, seconds=round(self._still, 1), key=key, deadline=round(deadline, 1))
            if self._processes.size > 1:
                declare(code)
        except Exception:  # noqa: BLE001  # this process ends in any case
            traceback.print_exc()
        finally:
            os._exit(code)  # the main thread stands where no exception reaches it

    def _lost(self, error: BaseException) -> LostError:
        """What to raise where the connection to another process ended."""
        self._ending.acquire()  # for good: the watch does not judge what is judged here
        self._own = {"lost": True}
        self._leave = time.monotonic() + _LEAVING_SECONDS, LOST  # should what follows hang, as with the run's disk
        verdict = self._find_out(after=time.monotonic())
        timed_out = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        code = HANG if timed_out else LOST
        if fault := self._fault_of_another():
            code, verdict = fault
        if timed_out:
            self._dump_stacks()
        if code in (HANG, LOST):
            still = round(self._still, 1)
            if timed_out:  # of the process group, or of the kernel, which has one of its own
                key, deadline = self._deadline(self._clock.activity)
                why = (
                    {"key": key, "deadline": deadline}
                    if still > deadline
                    else {"key": "the network", "deadline": still}
                )
                verdict = self._tell("hang", verdict, seconds=still, **why)
            else:
                verdict = self._tell("lost", verdict, seconds=still)
        self._beats.send()
        declare(code)
        self._leave = time.monotonic() + _LEAVING_SECONDS, code
        return LostError(_ending_with(verdict), code)

    def _fault_of_another(self) -> tuple[int, Verdict] | None:
        """The exit code of a process that told of a fault of its own, and which that is; None: nobody did."""
        faulty = [beat for beat, _ in self._beats.heard.values() if beat.code is not None]
        return (faulty[0].code or LOST, _verdict(faulty, faulty[0].fault)) if faulty else None

    def _find_out(self, after: float) -> Verdict:
        """Judge by the heartbeats, once it is known whose came after a moment; without them, it is the store's host."""
        if self._processes.size == 1:
            me = self._beat()
            return judge({0: me}, [], me)
        self._beats.listen()
        for _ in range(2):  # what was heard before is old, and the first answer may have been on its way
            self._beats.send()
        deadline = time.monotonic() + 2 * SILENT
        while time.monotonic() < deadline and self._beats.reached() and not self._beats.settled(after):
            beats = [beat for beat, _ in self._beats.heard.values()]
            if any(beat.code is not None for beat in beats):
                break
            if dead := [beat.rank for beat in beats if beat.state() in ("X", "T") and not beat.lost]:
                return judge({beat.rank: beat for beat in beats}, dead, self._beat())
            time.sleep(0.02)
        heard = {rank: beat for rank, (beat, _) in self._beats.heard.items()}
        if self._beats.reached() and heard:
            return judge(heard, self._beats.silent(), self._beat())
        time.sleep(SILENT)  # whoever has the store knows more: let them speak first
        me, host = self._beat(), self._beats.hosts[0] if self._beats.hosts else "unknown"
        return Verdict(
            [0], host, me.activity, me.step, "the store on the host of rank 0 does not answer: that host is dead, or "
            "the link to it is cut"
        )  # fmt: skip

    def _tell(self, event: str, verdict: Verdict, **facts: Any) -> Verdict:
        """Write the verdict down for all and say it; returns the one that holds, which may be another process's."""
        verdict, first = self._claim(event, verdict)
        facts |= dataclasses.asdict(verdict) | {"stacks": str(self._folder)}
        if first:
            self._record(event, facts)
        print(f"gemcutter train: {in_words(event, facts)}", file=sys.stderr, flush=True)
        return verdict

    def _record(self, event: str, facts: dict[str, Any]) -> None:
        """Append to the ledger, where the run has one. A full disk ends no thread that watches."""
        run, parts = self._run, self._parts
        if run is None or parts is None:
            return
        try:
            parts.directory.record(event, run.attempt, **facts)
        except DataError as error:
            print(f"gemcutter train: {error}", file=sys.stderr, flush=True)

    def _claim(self, event: str, verdict: Verdict) -> tuple[Verdict, bool]:
        """The verdict of the first process of this attempt that came to one, and whether that is this one."""
        run = self._run
        if run is None:
            return verdict, True
        path = self._folder / f"attempt-{run.attempt:04d}.json"
        own = self._folder / f".{path.stem}-{self._processes.rank}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            own.write_text(json.dumps({"event": event, **dataclasses.asdict(verdict)}))
            try:
                os.link(own, path)  # whole or not at all
            except FileExistsError:
                said = json.loads(path.read_text())
                del said["event"]
                return Verdict(**said), False
            finally:
                own.unlink()
        except OSError as error:
            print(f"gemcutter train: {path} cannot be written: {error}", file=sys.stderr)
        return verdict, True

    def _dump_stacks(self) -> None:
        """The stacks of all threads, into a file of this process; where that cannot be, into the terminal."""
        run = self._run
        attempt = 0 if run is None else run.attempt
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"attempt-{attempt:04d}-rank-{self._processes.rank:05d}.txt"
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(all_threads=True)

    def _look_for_stragglers(self, now: float) -> None:
        """Report a process that waits for its data much longer than the others, who then wait for it."""
        beats = {rank: beat for rank, (beat, _) in list(self._beats.heard.items())}
        run = self._run
        if self._settling() or run is None or len(beats) < self._processes.size:
            self._slow = None
            return
        if self._slow is None:
            self._slow = now, run.step, beats
        since, step, before = self._slow
        if now - since < _SLOW_SECONDS or run.step - step < _SLOW_STEPS:
            return
        self._slow = now, run.step, beats
        waited = {rank: beat.data_seconds - before[rank].data_seconds for rank, beat in beats.items()}
        rank, longest = max(waited.items(), key=lambda item: item[1])
        median = statistics.median_low(waited.values())
        slow = longest > _SLOW_FACTOR * median and longest - median > _SLOW_SHARE * (now - since)
        if slow and now - self._slow_said.get(rank, -_SLOW_AGAIN) >= _SLOW_AGAIN:
            self._slow_said[rank] = now
            facts = {
                "rank": rank,
                "host": beats[rank].host,
                "activity": "data",
                "step": run.step,
                "seconds_per_step": round(longest / (run.step - step), 3),
                "median": round(median / (run.step - step), 3),
                "share": round((longest - median) / (now - since), 2),
            }
            self._record("straggler", facts)
            print(in_words("straggler", facts), file=sys.stderr, flush=True)


def _of_network(error: BaseException) -> bool:
    """Whether an error says that another process is gone or unreachable: Gloo's have no class of their own."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _ending_with(verdict: Verdict) -> str:
    return f"ending with rank {_listed(verdict.ranks)} on {verdict.host}: {verdict.why}"


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks)) or "none"

"""Heartbeats: each process says once a second how far it has come, and hears what the others say.

They go through the store of the process group, over a connection and in a thread of their own: what blocks the process
itself blocks neither, and a connection that is cut blocks nobody but this thread.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store

INTERVAL = 1.0  # seconds between heartbeats
SILENT = 3.0  # seconds without one after which a process counts as silent


@dataclass(frozen=True)
class Beat:
    """What a process says of itself.

    activity, moves  as its Stopwatch has them
    step             that it works on, 1 for the first; 0 before it has a model
    still            seconds since its last move
    data_seconds     that it has waited for data so far
    lost             whether it lost a peer, and is about to end for that
    code, fault      where it is about to end by a fault of its own: its exit code, and what that was
    """

    rank: int
    host: str
    pid: int
    activity: str
    step: int
    moves: int
    still: float
    data_seconds: float
    lost: bool = False
    code: int | None = None
    fault: str = ""

    def state(self) -> str | None:
        """Of the process, where it is one of this host, a letter as in /proc: R, S, D, T (stopped) ...; X where it has
        ended. None where it cannot be known."""
        if self.host != socket.gethostname():
            return None
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "X"
        return "X" if state == "Z" else state


class Heartbeats(threading.Thread):
    """While it runs, this process's heartbeats are sent, and those of the others read where somebody listens.

    hosts  of all processes by rank, once they are known; they stay known when the store is not there any more
    heard  the last heartbeat of each process, and when it was first seen, on this process's clock; replaced whole
    """

    def __init__(self, store: Store, rank: int, size: int, say: Callable[[], Beat]) -> None:
        super().__init__(name="heartbeats", daemon=True)
        self.hosts: list[str] = []
        self.heard: dict[int, tuple[Beat, float]] = {}
        self._store, self._rank, self._size, self._say = store, rank, size, say
        self._answered = time.monotonic()  # when the store last did
        self._listening: float | None = None  # since when
        self._wake, self._over = threading.Event(), False

    def listen(self) -> None:
        """Hear the others from now on."""
        if self._listening is None:
            self.heard, self._listening = {}, time.monotonic()
            self._wake.set()

    def rest(self) -> None:
        """Hear them no longer."""
        self._listening = None

    def send(self) -> None:
        """Send a heartbeat now, and wait a moment until it has gone."""
        sent = self._answered
        self._wake.set()
        deadline = time.monotonic() + INTERVAL
        while self._answered == sent and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """End, and wait for that: an interpreter that ends while a thread is within the store aborts."""
        self._over = True
        self._wake.set()
        if self.is_alive():
            self.join(SILENT)  # not for ever: a store that is cut off does not answer

    def reached(self) -> bool:
        """Whether the store answers."""
        return time.monotonic() - self._answered < SILENT + INTERVAL

    def silent(self) -> list[int]:
        """Processes that sent no heartbeat since they are listened to, and long enough."""
        now = time.monotonic()
        return [rank for rank, (_, since) in self.heard.items() if now - since > SILENT]

    def settled(self, after: float) -> bool:
        """Whether each process is known to have sent a heartbeat after some moment, or to be silent."""
        now = time.monotonic()
        each = [since > after or now - since > SILENT for _, since in self.heard.values()]
        return len(each) == self._size and all(each)

    def run(self) -> None:
        store: Store | None = None
        while not self._over:
            try:
                if store is None:
                    store = self._store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
                    store.set_timeout(timedelta(seconds=SILENT))
                    store.set(f"watch/host/{self._rank}", socket.gethostname())
                self._exchange(store)
                self._answered = time.monotonic()
            except RuntimeError:  # torch's errors of a store derive from it; `reached` says so to whom it concerns
                store = None
            self._wake.wait(INTERVAL)
            self._wake.clear()

    def _exchange(self, store: Store) -> None:
        store.set(f"watch/beat/{self._rank}", json.dumps(asdict(self._say())))
        if not self.hosts:
            self._exchange_hosts(store)
        keys = [f"watch/beat/{rank}" for rank in range(self._size)]
        listening = self._listening
        if listening is None:
            store.get(keys[self._rank])  # an answer
        elif store.check(keys):
            now, heard = time.monotonic(), {}
            for rank, text in enumerate(store.multi_get(keys)):
                beat = Beat(**json.loads(text))
                # The first one may be old. Later ones differ at least in `still`.
                before, since = self.heard.get(rank, (beat, listening))
                heard[rank] = beat, since if before == beat else now
            self.heard = heard

    def _exchange_hosts(self, store: Store) -> None:
        """The first process collects the names for all: were each to ask each, the store would have much to do."""
        keys = [f"watch/host/{rank}" for rank in range(self._size)]
        if self._rank == 0 and store.check(keys):
            store.set("watch/hosts", json.dumps([name.decode() for name in store.multi_get(keys)]))
        if store.check(["watch/hosts"]):
            self.hosts = json.loads(store.get("watch/hosts"))

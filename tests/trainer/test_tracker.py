"""Promises of W&B: one run for all attempts, every step once written reaches it once, and its absence stops nothing.

The official client runs unchanged, against a server on this machine that speaks as much of W&B's interface as it asks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import yaml

from conf.json_lines import append_line
from conf.schema import Job
from tests.chaos.wandb import children, helpers
from tests.trainer.conftest import Recorded, Running
from tests.trainer.wandb_server import KEY, Server, history
from trainer.liveness.stop import StopSignal
from trainer.tracker import Follower, follower
from trainer.tracker.follower import END_SECONDS, FILE_SECONDS, STOP_SECONDS

QUICK = {"WANDB_INIT_TIMEOUT": "5"}  # seconds that the client has to start, else 20
LONGEST_CALL = 0.05  # seconds that training may wait for its tracker at a time


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as made:
        yield made


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, f"a minute without {what}"
        time.sleep(0.01)


class Trained:
    """A run as far as its tracker knows: rows in metrics.jsonl and a Follower, without the seconds of training."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempt = folder / "runs" / "small", 0
        self.written: list[tuple[int, int]] = []  # (attempt, step) of each row
        self.folder.mkdir(parents=True)
        self.stop = StopSignal()
        self.said: list[str] = []

    def begin(self, tracker: str = "wandb") -> Follower:
        self.attempt += 1
        config = dataclasses.asdict(Job())
        config["tracker"]["name"] = tracker
        self.follower = Follower(self.folder, "small", config, self.stop)
        return self.follower

    def use(self, server: Server) -> None:
        os.environ |= server.environment

    def row(self, step: int) -> dict[str, Any]:
        self.written.append((self.attempt, step))
        return {"step": step, "attempt": self.attempt, "time": time.time(), "loss": 1 / step, "mfu": None}

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            append_line(self.folder / "metrics.jsonl", self.row(step))

    def hear(self) -> list[str]:
        self.said += [news["said"] for news in self.follower.news()]
        return self.said

    def close(self) -> float:
        """The end of an attempt; how long that took, in seconds."""
        began = time.monotonic()
        self.follower.close(failed=False)
        self.hear()
        return time.monotonic() - began

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("wandb/offline-run-*/run-small.wandb"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(follower, "FIRST_PAUSE", 0.5)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # undone at the end, whatever `use` sets
    return Trained(tmp_path)


@pytest.fixture(scope="module")
def watched(shared_lab) -> Iterator[tuple[Server, Recorded, Running]]:
    """A run that somebody stopped in W&B's page and another process count went on with to the end."""
    with Server().running() as server:
        lab = dataclasses.replace(shared_lab, environment=shared_lab.environment | QUICK | server.environment)
        first = lab.start("watched", "tracker=wandb", "tracker.tags=[small]", "steps=100000", processes=2)
        first.until_step(2)
        server.stop = True
        first.wait()
        before = Recorded(shutil.copytree(first.folder, lab.folder / "watched-before"))
        server.stop = False
        yield server, before, lab.train("watched", "tracker=wandb", f"steps={before.column('step')[-1] + 5}")


def test_online_one_run_holds_the_steps_of_all_attempts(watched) -> None:
    server, _, run = watched
    assert set(server.runs) == {"watched"}
    rows = server.rows("watched")
    assert [row["trainer/step"] for row in rows] == run.column("step")
    assert [row["trainer/attempt"] for row in rows] == run.column("attempt")
    assert set(run.column("attempt")) == {1, 2}
    assert [row["loss"] for row in rows] == pytest.approx(run.column("loss"))
    assert [row["_timestamp"] for row in rows] == pytest.approx(run.column("time"))
    assert {"tokens_seen", "learning_rate", "grad_norm", "memory_bytes"} <= set(rows[0])
    config = json.loads(server.runs["watched"]["config"])
    assert config["optim"]["value"]["peak_lr"] == 3e-3
    assert server.exits == [("watched", 0), ("watched", 0)]
    assert f"W&B shows this run at {server.url}" in run.said


def test_stop_in_the_page_stops_all_processes_after_one_step(watched) -> None:
    _, before, _ = watched
    last = before.column("step")[-1]
    ends = [event["step"] for event in before.events if event["event"] in ("checkpoint", "stop")]
    assert ends == [last, last]


def test_the_key_is_written_nowhere(watched) -> None:
    server, _, run = watched
    written = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    assert server.keys
    assert all(KEY.encode() not in data for data in written)
    assert KEY not in run.said


def test_offline_all_attempts_have_one_id(run: Trained, server: Server, tmp_path: Path) -> None:
    run.begin("offline")
    run.steps(1, 3)
    run.close()
    run.begin("offline")
    run.steps(4, 5)
    run.close()
    assert [[row["trainer/step"] for row in history(file)] for file in run.files()] == [[1, 2, 3], [4, 5]]
    assert not (tmp_path / "wandb").exists()  # nothing outside the run directory
    assert not (tmp_path / ".netrc").exists()
    follow_advice(run, server)
    assert server.steps("small") == run.written


def follow_advice(run: Trained, server: Server) -> None:
    """Run the commands that the terminal named, in the order of attempts."""
    run.use(server)
    with (run.folder / "config.yaml").open("w") as file:
        yaml.safe_dump({"format": 1, "run_id": "small", "identity": {}, "config": dataclasses.asdict(Job())}, file)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for said in run.hear():
        if "`" in said:
            command = said.split("`")[1].replace("gemcutter", "python -P -m trainer")
            done = subprocess.run(
                command.split(), cwd=run.folder.parents[1], env=os.environ | {"PATH": path}, capture_output=True
            )
            assert done.returncode == 0, done.stderr


KILLED = """
import dataclasses, json, sys
from pathlib import Path
from conf.schema import Job
from conf.json_lines import append_line
from trainer.liveness.stop import StopSignal
from trainer.tracker import Follower, follower
from trainer.tracker.follower import END_SECONDS, FILE_SECONDS, STOP_SECONDS
folder, rows, tracker = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
config = dataclasses.asdict(Job())
config["tracker"]["name"] = tracker
Follower(folder, "small", config, StopSignal())
for row in rows:
    append_line(folder / "metrics.jsonl", row)
sys.stdin.read()
"""


@contextmanager
def attempt_to_kill(run: Trained, tracker: str, first: int, last: int) -> Iterator[subprocess.Popen[bytes]]:
    """An attempt in a process of its own, which is killed at the end of the block, with its children and theirs."""
    run.attempt += 1
    rows = [run.row(step) for step in range(first, last + 1)]
    process = subprocess.Popen([sys.executable, "-c", KILLED, run.folder, json.dumps(rows), tracker], stdin=PIPE)
    try:
        yield process
    finally:
        family = [*helpers(process.pid), *children(process.pid), process.pid]
        for each in family:
            os.kill(each, signal.SIGSTOP)  # first, so that none of them notices
        for each in family:
            os.kill(each, signal.SIGKILL)
        process.wait()


def test_a_killed_offline_attempt_is_written_again(run: Trained) -> None:
    with attempt_to_kill(run, "offline", 1, 3):
        until(lambda: run.files() and history(run.files()[0]), "a row in the file")
    run.begin("offline")
    run.steps(3, 4)
    run.close()
    (file,) = run.files()
    assert [(row["trainer/attempt"], row["trainer/step"]) for row in history(file)] == run.written


def test_after_a_kill_of_everything_each_step_is_there_once(run: Trained, server: Server) -> None:
    run.use(server)
    with attempt_to_kill(run, "wandb", 1, 30):
        until(lambda: server.rows("small"), "a row")
        reached = len(server.rows("small"))
    assert 0 < reached <= 30
    run.begin()
    run.steps(21, 40)  # from the checkpoint of step 20 on: what was done again shows too
    run.close()
    assert server.steps("small") == run.written
    assert [row["_step"] for row in server.rows("small")] == list(range(50))


def test_when_training_is_killed_what_it_wrote_still_arrives(run: Trained, server: Server) -> None:
    run.use(server)
    with attempt_to_kill(run, "wandb", 1, 30) as process:
        until(lambda: server.rows("small"), "a row")
        process.kill()
        until(lambda: server.exits == [("small", 1)], "the end in W&B")
        assert server.steps("small") == run.written


HANGING = """
import sys, threading
from trainer.tracker import mirror
class Hanging:
    def __init__(self, what):
        mirror.say(ready=True)
        threading.Event().wait()
mirror.Mirror, mirror.ORPHAN_SECONDS = Hanging, 0.2
mirror.main()
"""


def test_a_client_that_hangs_does_not_outlive_training_for_long(tmp_path: Path) -> None:
    """Where no order reaches it, and whoever would have killed it is gone."""
    with subprocess.Popen([sys.executable, "-c", HANGING], stdin=PIPE, stdout=PIPE, text=True) as process:
        process.stdin.write(json.dumps({"run": str(tmp_path), "run_id": "small"}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"ready": True}
        process.stdin.close()
        try:
            assert process.wait(timeout=10) == -signal.SIGALRM
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["hang", "refused"])
def test_a_server_that_fails_from_the_start_is_sent_all_later(run: Trained, mode: str) -> None:
    with Server().running() as server:
        run.use(server)
        if mode != "refused":
            server.mode = mode
            begin_without_server(run)
    if mode == "refused":
        begin_without_server(run)
    with Server(port=server.port).running() as server:
        follow_advice(run, server)
        assert server.steps("small") == run.written
        run.begin()
        run.steps(4, 5)
        run.close()
        assert server.steps("small") == run.written


def begin_without_server(run: Trained) -> None:
    run.begin()
    run.steps(1, 3)
    until(lambda: run.hear(), "news")
    assert "W&B does not answer" in run.said[0]
    run.stop.ask("the test")  # a grace period may be short
    assert run.close() < STOP_SECONDS + FILE_SECONDS
    (file,) = run.files()
    assert [row["trainer/step"] for row in history(file)] == [1, 2, 3]
    run.stop.asked_by = None


def test_a_server_that_comes_back_gets_all_in_the_same_attempt(run: Trained) -> None:
    with Server("500").running() as server:
        run.use(server)
        run.begin()
        run.steps(1, 3)
        until(lambda: run.hear(), "news")
        server.mode = "ok"
        until(lambda: server.steps("small") == run.written, "the steps")
        server.mode = "malformed"
        until(lambda: "W&B does not answer" in run.hear()[-1], "news of the second failure")
        server.mode = "ok"
        until(lambda: "W&B answers again" in run.hear()[-1], "news that it answers")
        run.steps(4, 9)
        run.close()
        assert server.steps("small") == run.written


def test_a_server_that_hangs_in_the_middle_is_sent_the_rest_later(run: Trained, server: Server) -> None:
    run.use(server)
    run.begin()
    run.steps(1, 3)
    until(lambda: server.rows("small"), "a row")
    server.mode = "hang"
    run.steps(4, 9)
    assert run.close() < END_SECONDS
    assert any("W&B does not answer" in said for said in run.said)
    assert "`gemcutter sync small`" in run.said[-1]
    server.close()  # what hangs ends
    server.mode = "ok"
    follow_advice(run, server)
    assert server.steps("small") == run.written


def test_when_its_helper_is_killed_it_goes_on_from_what_the_server_has(run: Trained, server: Server) -> None:
    run.use(server)
    run.begin()
    run.steps(1, 3)
    until(lambda: server.rows("small"), "a row")
    os.kill(helpers(os.getpid())[0], signal.SIGKILL)
    run.steps(4, 6)
    until(lambda: any("W&B's client failed" in said for said in run.hear()), "news")
    until(lambda: len(run.hear()) == 3, "a new start")
    run.steps(7, 9)
    run.close()
    assert server.steps("small") == run.written


def test_a_directory_begun_anew_adds_to_what_the_server_has(run: Trained, server: Server) -> None:
    run.use(server)
    for attempt in (1, 2):
        run.begin()
        run.steps(1, 4)
        run.close()
        if attempt == 1:
            shutil.rmtree(run.folder)
            run.folder.mkdir()
    assert server.steps("small") == run.written


def test_training_never_waits_for_it(run: Trained) -> None:
    """With a server that does not answer: starting, asking for news and keeping files are calls that return at once."""
    began, calls = time.perf_counter(), []

    def timed(call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        call()
        calls.append(time.perf_counter() - start)

    with Server("hang").running() as server:
        run.use(server)
        timed(run.begin)
        (run.folder / "trace").write_bytes(b"trace")
        timed(lambda: run.follower.keep("profile", "steps-1-2", [run.folder / "trace"]))
        while not server.asked:  # over the start of the client, up to its first question
            timed(run.follower.news)  # once a step
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        run.stop.ask("the test")
        run.close()
    assert max(calls) < LONGEST_CALL
    assert sum(calls) < 0.01 * seconds

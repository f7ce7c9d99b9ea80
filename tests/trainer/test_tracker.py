"""Promises of W&B: one run for all attempts, every step once written reaches it, and its absence stops nothing.

The official client runs unchanged, against a server on this machine that speaks as much of W&B's interface as it asks.
"""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

KEY = "0123456789" * 4


class Server(ThreadingHTTPServer):
    """Keeps what runs send: for each run id its configuration and history."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.exits: list[tuple[str, int]] = []
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bucket(self, run_id: str) -> dict[str, Any] | None:
        """A run as queries describe it."""
        run = self.runs.get(run_id)
        if run is None:
            return None
        history = run["history"]
        return {
            "id": f"bucket-{run_id}",
            "name": run_id,
            "displayName": run_id,
            "description": "",
            "config": run["config"],
            "summaryMetrics": history[-1] if history else "{}",
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": "[]",
            "historyLineCount": len(history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": None,
            "project": {"id": "project", "name": "gemcutter", "entity": {"id": "entity", "name": "somebody"}},
        }

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation."""
        run_id = variables.get("name")
        if "upsertBucket" in query:
            created = run_id not in self.runs
            run = self.runs.setdefault(run_id, {"history": [], "config": "{}"})
            run["config"] = variables.get("config") or run["config"]
            return {"upsertBucket": {"bucket": self.bucket(run_id), "inserted": created}}
        if re.search(r"\bRunResumeStatus\b", query):
            return {"model": {"id": "project", "name": "gemcutter", "bucket": self.bucket(run_id)}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}
        if re.search(r"\bRunStoppedStatus\b", query):
            return {"project": {"run": {"stopped": False}}}
        viewer = {
            "id": "user",
            "entity": "somebody",
            "username": "somebody",
            "email": "",
            "admin": False,
            "flags": "{}",
        }
        versions = {"max_cli_version": "99.0.0", "min_cli_version": "0.1.0"}
        return {
            "viewer": viewer | {"teams": {"edges": []}, "apiKeys": {"edges": []}},
            "serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        self.server.keys.add(self.headers.get("authorization", ""))
        if self.path.endswith("/graphql"):
            self._reply({"data": self.server.answer(body.get("query", ""), body.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            run_id = self.path.split("/")[-2]
            sent = (body.get("files") or {}).get("wandb-history.jsonl")
            if sent:
                history = self.server.runs[run_id]["history"]
                history[sent["offset"] :] = sent["content"]
            if "exitcode" in body:
                self.server.exits.append((run_id, body["exitcode"]))
        self._reply({})

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def _reply(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_online_one_run_holds_the_steps_of_all_attempts(lab, server: Server) -> None:
    lab.environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    first = lab.start("watched", "tracker=wandb", "tracker.tags=[small]")
    first.until_step(3)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait().code == 75, first.said
    second = lab.train("watched", "tracker=wandb")
    assert set(server.runs) == {"watched"}
    history = [json.loads(line) for line in server.runs["watched"]["history"]]
    for row in history:  # W&B's own counter starts over, ours does not
        assert "step" in row
    assert [row["step"] for row in history] == second.column("step")
    assert [row["loss"] for row in history] == pytest.approx(second.column("loss"))
    assert {"tokens_seen", "learning_rate", "grad_norm", "memory_bytes"} <= set(history[0])
    config = json.loads(server.runs["watched"]["config"])
    assert config["optim"]["value"]["peak_lr"] == 3e-3
    assert server.exits == [("watched", 0), ("watched", 0)]
    assert KEY not in "".join(path.read_text(errors="replace") for path in first.folder.glob("*.*"))


def test_offline_all_attempts_have_one_id(lab) -> None:
    lab.train("offline", "tracker=offline", "steps=3")
    run = lab.train("offline", "tracker=offline", "steps=5")
    records = sorted(run.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(records) == 2
    assert {path.name for path in records} == {"run-offline.wandb"}
    assert all(path.stat().st_size > 0 for path in records)
    assert not (lab.folder / "wandb").exists()  # nothing outside the run directory
    assert not (lab.folder / ".netrc").exists()


def test_a_server_that_does_not_answer_stops_nothing(lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and never listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        # By default the client waits 90 seconds before it gives up.
        lab.environment |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "WANDB_INIT_TIMEOUT": "2"}
        run = lab.train("lonely", "tracker=wandb", "steps=3")
    assert run.column("step") == [1, 2, 3]
    assert "W&B does not answer" in run.said
    assert "run `wandb sync` on it later" in run.said
    assert len(list(run.folder.glob("wandb/offline-run-*/run-lonely.wandb"))) == 1


def test_without_a_key_the_run_goes_on_offline(lab) -> None:
    run = lab.train("keyless", "tracker=wandb", "steps=2")
    assert "W&B does not answer" in run.said
    assert len(list(run.folder.glob("wandb/offline-run-*/run-keyless.wandb"))) == 1

"""A W&B server on this machine that speaks as much of its interface as the official client asks, and can fail.

And a reader of the files that the client writes, since it has none that outsiders may call.
"""

from __future__ import annotations

import gzip
import json
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any

from tests.loopback import Loopback

KEY = "0123456789" * 4
# A list, no JSON at all, and JSON that lacks what was asked for.
MALFORMED = (b"[]", b"<html>", b'{"data": null}', b'{"data": {"createRunFiles": null, "upsertBucket": null}}', b"{")


class Server(Loopback):
    """Keeps what runs send: for each run id its configuration and history.

    mode  how it answers: "ok", "500", "hang" (not at all) or "malformed"; may change at any time
    stop  what it says to a run that asks whether somebody pressed Stop
    asked  requests so far
    """

    def __init__(self, mode: str = "ok", port: int = 0) -> None:
        super().__init__(type("Bound", (Handler,), {"wandb": self}), port)
        self.mode, self.stop, self.asked = mode, False, 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.exits: list[tuple[str, int]] = []
        self.keys: set[str] = set()
        self.uploads: list[str] = []
        self.turn = count()
        self.closing = threading.Event()

    def close(self) -> None:
        self.closing.set()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the client use this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """The history of a run as it stands, in the order in which a person sees it."""
        return [json.loads(line) for line in self.runs.get(run_id, {"history": []})["history"]]

    def steps(self, run_id: str) -> list[tuple[int, int]]:
        """(attempt, step) of each row."""
        return [(row["trainer/attempt"], row["trainer/step"]) for row in self.rows(run_id)]

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
            "historyKeys": {"lastStep": json.loads(history[-1])["_step"] if history else -1},
            "eventsLineCount": 0,
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
            "sweepName": None,
            "state": "running",
            "user": {"name": "somebody", "username": "somebody"},
            "project": {"id": "project", "name": "gemcutter", "entity": {"id": "entity", "name": "somebody"}},
        }

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL operation."""
        run_id = variables.get("name") or variables.get("runId") or variables.get("run")
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
        if re.search(r"\bquery (Run|RunHistoryKeys)\b", query):
            return {"project": {"internalId": "1", "run": self.bucket(run_id)}}
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
    wandb: Server

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        self._answer(self._body())

    def do_POST(self) -> None:
        self._answer(self._body())

    def _answer(self, body: bytes) -> None:
        server = self.wandb
        server.asked += 1
        server.keys.add(self.headers.get("authorization", ""))
        mode = server.mode
        if mode == "500":
            self._reply(500, b'{"error": "on purpose"}')
        elif mode == "malformed":
            self._reply(200, MALFORMED[next(server.turn) % len(MALFORMED)])
        elif mode == "hang":
            server.closing.wait()
            self.close_connection = True
        else:
            self._reply(200, json.dumps(self._take(body)).encode())

    def _take(self, body: bytes) -> dict[str, Any]:
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            return {"data": self.wandb.answer(asked.get("query", ""), asked.get("variables") or {})}
        if self.path.endswith("/file_stream"):
            run_id, sent = self.path.split("/")[-2], json.loads(body)
            rows = (sent.get("files") or {}).get("wandb-history.jsonl")
            if rows:
                self.wandb.runs[run_id]["history"][rows["offset"] :] = rows["content"]
            if "exitcode" in sent:
                self.wandb.exits.append((run_id, sent["exitcode"]))
            return {"limits": {}, "stopped": self.wandb.stop}
        if self.path.startswith("/upload/"):
            self.wandb.uploads.append(self.path.removeprefix("/upload/"))
        return {}

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def _reply(self, code: int, data: bytes) -> None:
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has gone
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.close_connection = True


_BLOCK, _HEADER = 32768, 7  # bytes


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: a log of LevelDB's format after a header of 7 bytes, of protocol buffers.

    A record that a kill cut short ends it. Raises ValueError where a checksum is wrong.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    if not data.startswith(b":W&B"):
        raise ValueError(f"{path} is no file of W&B")
    at, parts = _HEADER, b""
    while at + _HEADER <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # a block ends with zeros where no header fits
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + _HEADER : at + _HEADER + length]
        if len(part) < length or kind == 0:
            return
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"{path}: wrong checksum at byte {at}")
        at += _HEADER + length
        parts = part if kind in (1, 2) else parts + part  # 1: whole, 2: first, 3: middle, 4: last
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics in a `.wandb` file."""
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]

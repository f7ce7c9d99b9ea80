"""Promises of notices: the machine's metadata server is heard, by all, and nothing that it does harms training."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.loopback import Loopback
from tests.trainer.conftest import Recorded
from trainer.liveness import notice
from trainer.liveness.notice import announced
from trainer.liveness.stop import MAINTENANCE, PREEMPTION, StopSignal

CALM = {"maintenanceEvent": "NONE", "preempted": "FALSE", "name": "a machine"}


class Metadata(Loopback):
    """A metadata server, as that of Google's cloud answers: at once to whoever does not know, else with a change.

    instance  what it says of the machine
    nonsense  what it does with requests first, by name of a method of `_Answer`
    """

    def __init__(self) -> None:
        self.instance = dict(CALM)
        self.nonsense: list[str] = []
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self.version = 1
        super().__init__(type("Bound", (_Answer,), {"metadata": self}))
        self.host = f"127.0.0.1:{self.port}"

    def say(self, **values: str) -> None:
        with self.changed:
            self.instance |= values
            self.version += 1
            self.changed.notify_all()

    def close(self) -> None:
        self.say(closed="TRUE")


class _Answer(BaseHTTPRequestHandler):
    metadata: Metadata

    def do_GET(self) -> None:
        server = self.metadata
        server.requests.append(self.path)
        if server.nonsense:
            getattr(self, server.nonsense.pop(0))()
            return
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert url.path == "/computeMetadata/v1/instance/"
        assert asked["recursive"] == asked["wait_for_change"] == "true"
        assert self.headers["Metadata-Flavor"] == "Google"
        with server.changed:
            server.changed.wait_for(lambda: asked["last_etag"] != f"v{server.version}", float(asked["timeout_sec"]))
            self.answer(json.dumps(server.instance).encode(), f"v{server.version}")

    def answer(self, body: bytes, etag: str, flavor: str = "Google", code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Metadata-Flavor", flavor)
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body)

    def fails(self) -> None:
        self.answer(b"{}", "e", code=503)

    def garbles(self) -> None:
        self.answer(b'{"preempted": "TR', "e")

    def lists(self) -> None:
        self.answer(b'["TRUE"]', "e")

    def is_another(self) -> None:
        self.answer(b'{"preempted": "TRUE"}', "e", flavor="captive portal")

    def floods(self) -> None:
        self.answer(b" " * (2**22 + 2), "e")

    def hangs_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def speaks_no_http(self) -> None:
        self.wfile.write(b"220 smtp ready\r\n")

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata().running() as server:
        yield server


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, None),
        ({"maintenanceEvent": "TERMINATE_ON_HOST_MAINTENANCE"}, MAINTENANCE),
        ({"maintenanceEvent": "MIGRATE_ON_HOST_MAINTENANCE"}, None),  # it goes on elsewhere
        ({"preempted": "TRUE"}, PREEMPTION),
        ({"preempted": ["TRUE"], "maintenanceEvent": {"a": 1}}, None),
    ],
)
def test_what_takes_a_machine_away(said: dict, reason: str | None) -> None:
    assert announced(CALM | said) == reason


NONSENSE = ["fails", "garbles", "lists", "is_another", "floods", "hangs_up", "speaks_no_http"]


def test_a_server_that_talks_nonsense_is_asked_again_later(metadata: Metadata, monkeypatch, capfd) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(notice, "time", SimpleNamespace(sleep=pauses.append))
    metadata.nonsense = list(NONSENSE)
    stop = StopSignal()
    watching = threading.Thread(target=notice._watch, args=(metadata.host, stop), daemon=True)
    watching.start()
    metadata.say(name="renamed")  # a change that is none of ours
    metadata.say(preempted="TRUE")
    watching.join(timeout=30)
    assert stop.asked_by == PREEMPTION
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert capfd.readouterr().err.count("does not answer as it should") == 1


@pytest.mark.parametrize("server", ["absent", "silent"])
def test_training_neither_waits_for_the_server_nor_needs_it(inside, alone, server: str, lab, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        if server == "absent":
            listening.close()
        monkeypatch.setenv("GCE_METADATA_HOST", host)
        code, said = inside(server)
    assert code == 0, said
    assert lab.run(server).column("loss") == alone.column("loss")


def test_a_notice_that_one_host_gets_stops_all_and_says_why(lab) -> None:
    """Two hosts of one process each; the one that writes the events gets no notice."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    keys = lab.overrides("noticed", "steps=100000", "mesh.fsdp=2")
    run = Recorded(lab.folder / "runs" / "noticed")
    with Metadata().running() as calm, Metadata().running() as noticed:
        hosts = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "trainer", "train", *keys],
                cwd=lab.folder,
                env=lab.environment | group | {"RANK": str(rank), "GCE_METADATA_HOST": server.host},
            )
            for rank, server in enumerate((calm, noticed))
        ]
        try:
            deadline = time.monotonic() + 120
            # Of each host two requests: one to know, one that waits.
            while not run.lines or [len(server.requests) for server in (calm, noticed)] != [2, 2]:
                assert all(host.poll() is None for host in hosts)
                assert time.monotonic() < deadline
                time.sleep(0.01)
            noticed.say(maintenanceEvent="TERMINATE_ON_HOST_MAINTENANCE")
            assert [host.wait(timeout=60) for host in hosts] == [75, 75]
        finally:
            for host in hosts:
                host.kill()
                host.wait()
    said = run.events[-1]
    assert (said["event"], said["by"]) == ("stop", MAINTENANCE)
    assert said["step"] == run.lines[-1]["step"]
    assert (run.folder / "checkpoints" / f"step-{said['step']:08d}" / "COMMIT").exists()


def test_only_one_process_of_a_host_watches(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", metadata.host)
    monkeypatch.setenv("LOCAL_RANK", "1")
    threads = threading.active_count()
    notice.watch(StopSignal())
    assert threading.active_count() == threads


def test_only_machines_of_the_cloud_are_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    product = tmp_path / "product_name"
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(notice, "_PRODUCT", product)
    assert notice.metadata_host() is None
    product.write_text("Standard PC (Q35 + ICH9, 2009)\n")
    assert notice.metadata_host() is None
    product.write_text("Google Compute Engine\n")
    assert notice.metadata_host() == "metadata.google.internal"

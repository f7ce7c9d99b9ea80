"""A web server on this machine that fails as it is told to. For tests of what reads over a network.

Knows nothing of who asks. It serves what it was given, honours ranges, and counts what it was asked.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote

# What an answer can suffer.
TRUNCATE = "truncate"  # half of the body, then the end of the connection, though all of it was declared
SHORT = "short"  # half of the body, and no more was declared
STALL = "stall"  # nothing at all
STALL_IN_BODY = "stall in body"  # half of the body, then nothing
FLIP = "flip"  # one bit of the body is another
RESET = "reset"  # the connection is reset before an answer
WHOLE = "whole"  # all of the file, whatever range was asked for
FAULTS = (TRUNCATE, SHORT, STALL, STALL_IN_BODY, FLIP, RESET, WHOLE)


@dataclass
class HostileServer:
    """Serves `files` by path, as in "/folder/name". A fault is a status such as 503, or one of FAULTS."""

    files: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)  # by path
    ranges: list[tuple[str, str | None]] = field(default_factory=list)  # (path, its Range header) as they came
    targets: list[str] = field(default_factory=list)  # paths with what stood behind the `?`
    authorizations: list[str | None] = field(default_factory=list)
    _faults: defaultdict[str, list[str | int]] = field(default_factory=lambda: defaultdict(list))
    _always: dict[str, str | int] = field(default_factory=dict)
    _closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, path: str, *faults: str | int) -> None:
        """The next answers for a path suffer these, one each."""
        self._faults[path] += faults

    def always(self, path: str, fault: str | int) -> None:
        """Every answer for a path suffers this."""
        self._always[path] = fault

    @property
    def address(self) -> str:
        """As it stands in a URL: host and port."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"

    def __enter__(self) -> HostileServer:
        handler = type("Handler", (_Handler,), {"hostile": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, path: str, target: str, wanted: str | None, authorization: str | None) -> str | int | None:
        """Note a request; what its answer shall suffer."""
        with self._lock:
            self.requests[path] += 1
            self.ranges.append((path, wanted))
            self.targets.append(target)
            self.authorizations.append(authorization)
            return self._faults[path].pop(0) if self._faults[path] else self._always.get(path)

    def wait(self) -> None:
        """Send nothing until the server is closed."""
        self._closing.wait(30)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # or connections that are opened together wait a second
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hostile: HostileServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        wanted = self.headers.get("Range")
        fault = self.hostile.asked(path, self.path, wanted, self.headers.get("Authorization"))
        if fault == STALL:
            self.hostile.wait()
            self.close_connection = True
        elif fault == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif isinstance(fault, int):
            self._answer(fault, b"failed as told")
        elif path not in self.hostile.files:
            self._answer(404, b"no such file")
        else:
            self._serve(self.hostile.files[path], wanted, fault)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _serve(self, body: bytes, wanted: str | None, fault: str | None) -> None:
        status, headers = 200, {}
        if wanted is not None and fault != WHOLE:
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
            assert found is not None, wanted
            start, end = int(found[1]), min(int(found[2] or len(body)) + 1, len(body))
            if start >= len(body):
                self._answer(416, b"")
                return
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}
            status, body = 206, body[start:end]
        if fault == FLIP:
            body = flipped(body)
        sent = body[: len(body) // 2] if fault in (TRUNCATE, SHORT, STALL_IN_BODY) else body
        self._answer(status, sent, declared=len(sent if fault == SHORT else body), **headers)
        if fault == STALL_IN_BODY:
            self.hostile.wait()
        if fault in (TRUNCATE, STALL_IN_BODY):
            self.close_connection = True

    def _answer(self, status: int, body: bytes, declared: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if declared is None else declared))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()


def flipped(data: bytes, bit: int | None = None) -> bytes:
    """The bytes with one bit changed, the middle one if not told which."""
    changed = bytearray(data)
    bit = len(data) * 4 if bit is None else bit
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)

"""An HTTP server on loopback that serves a folder, and misbehaves as it is told."""

from __future__ import annotations

import socket
import time
from collections import Counter, defaultdict, deque
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from tests.loopback import Loopback

FAULTS = ("truncate", "short", "stall", "500", "503", "flip", "reset", "404", "403", "whole")


class HostileServer(Loopback):
    """`faults[path]` are what the next answers for a path suffer, one each; `always[path]` what every one does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.always: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        self.queries: list[str] = []
        super().__init__(self._handler())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path, _, query = self.path.lstrip("/").partition("?")
                outer.requests[path] += 1
                outer.queries.append(query)
                own = outer.faults[path]
                fault = own.popleft() if own else outer.always.get(path, "")
                file = outer.folder / path
                if fault.isdigit() or not file.is_file():
                    self._answer(int(fault) if fault.isdigit() else 404, b"no", len(b"no"))
                    return
                data, status = file.read_bytes(), 200
                if (asked := self.headers.get("Range")) and fault != "whole":
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    data, status = data[int(first) : int(last) + 1 if last else None], 206
                if fault == "flip":
                    data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()
                    return
                length = len(data)
                if fault in ("truncate", "short", "stall"):
                    data = data[: len(data) // 2]
                self._answer(status, data, len(data) if fault == "short" else length)
                if fault == "stall":
                    self.wfile.flush()
                    time.sleep(3)
                if fault in ("stall", "truncate"):
                    self.close_connection = True

            def _answer(self, status: int, data: bytes, length: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

        return Handler

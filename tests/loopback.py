"""What the HTTP servers of tests share: a port of loopback, answered by a thread while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_LOOK = 0.05  # seconds between looks whether it is to end


class Loopback:
    """A server whose requests a handler of its own answers; it listens as soon as it is made."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True  # an answer that does not come keeps nobody
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[Self]:
        thread = threading.Thread(target=self._server.serve_forever, args=(_LOOK,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.close()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def close(self) -> None:
        """Let go whoever still waits for an answer."""

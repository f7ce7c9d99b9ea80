"""A page in Debian's Chromium: what it says about itself, how it looks at a width, and as it is printed.

Speaks the DevTools protocol over a pipe, so no port is open and nothing but the browser is needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 60  # that an answer may take on a busy machine
# Containers have no user namespaces for the sandbox, and little shared memory. The rest keeps it from doing anything of
# its own.
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-breakpad",
    "--no-default-browser-check", "--hide-scrollbars", "--font-render-hinting=none", "--remote-debugging-pipe",
)  # fmt: skip


def executable() -> str | None:
    """Where Chromium is; None where it is missing. Root gets Debian's, as nobody else can."""
    if shutil.which("chromium") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {
            "check": False,
            "stdout": subprocess.DEVNULL,
            "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        }
        subprocess.run(["apt-get", "update", "-qq"], timeout=120, **quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], timeout=240, **quiet)
    return shutil.which("chromium")


class Browser:
    """One tab of a browser. `events` are those of the page that is open."""

    def __init__(self, process: subprocess.Popen[bytes], to_it: int, from_it: int) -> None:
        self._process, self._to_it, self._from_it = process, to_it, from_it
        self._number, self._unread, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        # A dialogue would wait for somebody; so it is a complaint like others.
        self.ask("Page.addScriptToEvaluateOnNewDocument", source="window.alert = console.error")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command of the protocol. Raises RuntimeError where it was refused."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to_it, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            if not select.select([self._from_it], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(f"the browser said nothing for {SECONDS} s")
            if not (piece := os.read(self._from_it, 1 << 20)):
                raise EOFError(f"the browser ended with {self._process.wait()}")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path, width: int, *, dark: bool = False, media: str = "screen") -> None:
        """Open a file at a width of so many CSS pixels, as `screen` or `print` shows it."""
        self.events = []
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """What the page wrote to the console, and errors of the browser about it."""
        told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in told]

    def requests(self) -> list[str]:
        """The URLs that were asked for: one, of the page itself, where it needs nothing else."""
        sent = (event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent")
        return [one["request"]["url"] for one in sent]

    def picture(self) -> bytes:
        """A PNG of the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def print(self) -> bytes:
        """A PDF on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        return base64.b64decode(self.ask("Page.printToPDF", **paper)["data"])


@contextlib.contextmanager
def browser(chromium: str, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, that is gone when the block ends."""
    their_end, to_it = os.pipe()
    from_it, their_other_end = os.pipe()
    # It reads from descriptor 3 and writes to 4.
    script = f'exec "$@" 3<&{their_end} 4>&{their_other_end}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", chromium, *SWITCHES, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(their_end, their_other_end),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        os.close(their_end)
        os.close(their_other_end)
        yield Browser(process, to_it, from_it)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_it)
        os.close(from_it)

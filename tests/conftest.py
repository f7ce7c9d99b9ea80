"""What every test shares: the golden switch, skips held against the list of allowed ones where CI runs, and the end."""

from __future__ import annotations

import faulthandler
import fnmatch
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite the golden files, then read the diff")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the rooms."""
    return ROOT


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeftBehind())
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipGuard(allowed_skips()))


def allowed_skips() -> list[str]:
    """Patterns of test ids, one a line before the reason."""
    lines = [line.split(None, 1) for line in ALLOWED_SKIPS.read_text().splitlines() if not line.startswith("#")]
    return [pattern for pattern, _reason in lines]  # a pattern without a reason stops here


class SkipGuard:
    """A skip that nobody allowed fails the session: a check that silently never runs is worth nothing."""

    def __init__(self, allowed: list[str]) -> None:
        self.allowed = allowed
        self.refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._hold(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._hold(report)

    def _hold(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        skipped = report.skipped and not hasattr(report, "wasxfail")  # an expected failure is reported as skipped
        if skipped and not any(fnmatch.fnmatchcase(report.nodeid, pattern) for pattern in self.allowed):
            self.refused.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.refused and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section("skips that tests/allowed_skips.txt does not name", red=True)
            terminalreporter.write_line("\n".join(self.refused))


class LeftBehind:
    """A process that a test started and did not end fails the session. A session that cannot end says why.

    Such a process may hold the output of CI open, or take a core from all tests that follow. Known by its environment,
    in which pytest writes which test is running.
    """

    MARK = "GEMCUTTER_TEST_SESSION"
    SECONDS_TO_DIE = 10  # of what has just been killed
    SECONDS_TO_END = 60

    def __init__(self) -> None:
        self.left: list[str] = []

    def pytest_sessionstart(self) -> None:
        os.environ[self.MARK] = str(os.getpid())

    @pytest.hookimpl(trylast=True)  # after the fixtures of the session
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        deadline = time.monotonic() + self.SECONDS_TO_DIE
        while (found := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid, command, test in found:
            self.left.append(f"{test or 'no test'}: {pid} {command}")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.left and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _processes(self) -> Iterator[tuple[int, str, str]]:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                pairs = (pair.partition(b"=") for pair in (folder / "environ").read_bytes().split(b"\0"))
                environment = {
                    name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs
                }
            except OSError:  # gone, or another user's
                continue
            # What keeps track of shared memory ends with this process.
            ours = environment.get(self.MARK) == str(os.getpid()) and int(folder.name) != os.getpid()
            if ours and words and "multiprocessing.resource_tracker" not in words:
                yield int(folder.name), words[:300], environment.get("PYTEST_CURRENT_TEST", "")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.left:
            terminalreporter.section("processes that tests left behind", red=True)
            terminalreporter.write_line("\n".join(self.left))

    def pytest_unconfigure(self) -> None:
        faulthandler.dump_traceback_later(self.SECONDS_TO_END, exit=True)

"""What every test shares: the golden switch, and skips held against the list of allowed ones where CI runs."""

from __future__ import annotations

import fnmatch
import os
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

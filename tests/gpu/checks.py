"""The checks of one part, in a process of their own that tells of each on a line of JSON.

    {"checks": [names]}                                       first
    {"check", "outcome": "begun"}                             before each
    {"check", "outcome", "seconds", "found", "reason"}        after each: passed, failed or not run

What a check returns is kept as `found`. Of equal checks the last line holds, so a process that takes over leaves out
what was told before.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Check = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where checks run, how small they have to be, and when they must have ended (`time.time`)."""

    device: str  # cpu or cuda
    quick: bool
    deadline: float

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()


class NotRun(Exception):
    """Why a check cannot be made here."""


def held(values: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """What was measured beside its bound. Raises AssertionError where one is above it, or no number."""
    above = [
        f"{name} is {value:.3g}, above {bound:.3g}" for name, (value, bound) in values.items() if not value <= bound
    ]
    assert not above, "; ".join(above)
    return {name: {"value": value, "bound": bound} for name, (value, bound) in values.items()}


def run_checks(checks: Mapping[str, Check], place: Place, told: Path) -> bool:
    """Make those that were not told of yet. False where the device is lost: another process has to go on."""
    before = outcomes(told)
    with told.open("a", buffering=1) as file:

        def tell(**line: Any) -> None:
            print(json.dumps(line), file=file)

        tell(checks=list(checks))
        for name, check in checks.items():
            if before.get(name, {}).get("outcome") is not None:
                continue
            if place.left() <= 0:
                break
            tell(check=name, outcome="begun")
            began, found, reason, lost = time.time(), None, None, False
            try:
                found, outcome = check(), "passed"
            except (NotRun, ModuleNotFoundError) as error:
                outcome, reason = ("not run", str(error)) if _foreign(error) else ("failed", _reason(error))
            except Exception as error:  # noqa: BLE001 (whatever it is, it is this check's result)
                outcome, reason, lost = "failed", _reason(error), isinstance(error, torch.AcceleratorError)
            tell(check=name, outcome=outcome, seconds=round(time.time() - began, 2), found=found, reason=reason)
            if lost:
                return False
    return True


def outcomes(told: Path) -> dict[str, dict[str, Any]]:
    """What was told of each check, by name; empty where it was not begun."""
    found: dict[str, dict[str, Any]] = {}
    lines = told.read_text().splitlines(keepends=True) if told.exists() else []
    for line in (json.loads(line) for line in lines if line.endswith("\n")):  # who was ended may have told half a line
        if "checks" in line:
            found |= {name: {} for name in line["checks"] if name not in found}
        else:
            found[line.pop("check")] = line
    return found


def _foreign(error: Exception) -> bool:
    """Whether a module that is missing is no part of this repository."""
    name = getattr(error, "name", None) or ""
    return name.split(".")[0] not in ("conf", "data_pipeline", "trainer", "launch", "tests")


def _reason(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:2000]} ({Path(last.filename).name}:{last.lineno})"

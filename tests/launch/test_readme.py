"""Commands that the README shows are taken as they stand: keys, options and values compose, and targets exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf import compose, schema
from launch.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
# `gemcutter` of any environment, and what it is given up to the end of the shell's command.
GEMCUTTER = re.compile(r"(?:^|[ '/])(?<!-C ~/)gemcutter (?P<name>[a-z]+)(?P<given>(?: +(?:'[^']*'|[^ #'&<>|]+))*)")


def shown() -> list[str]:
    """The lines of all blocks."""
    blocks = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Job or command, and its arguments; `...` stands for others."""
    for match in filter(None, map(GEMCUTTER.search, shown())):
        yield match["name"], [word for word in shlex.split(match["given"]) if word != "..."]


def test_commands_are_found() -> None:
    found = list(commands())
    assert len(found) >= 14
    assert {name for name, _ in found} >= {
        "curate",
        "tokenize",
        "train",
        "evaluate",
        "export",
        "import",
        "plan",
        "doctor",
    }
    assert sum("backend=xla" in given for _, given in found) >= 2


@pytest.mark.parametrize(("name", "given"), list(commands()))
def test_command_of_the_readme_is_taken(name: str, given: list[str]) -> None:
    if name in COMMANDS:
        return
    assert name in schema.JOBS
    if "-m" in given:  # each point of a sweep composes like the job alone
        given = [word.split(",")[0] for word in given if word != "-m"]
    assert isinstance(compose.compose(name, given), schema.Job)


def test_other_overrides_of_the_readme_are_taken() -> None:
    lines = [shlex.split(line, comments=True) for line in shown() if re.match(r"[a-z_.]+=", line)]
    assert len(lines) >= 4
    assert compose.override_problems(word for line in lines for word in line) == []


def test_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (?:-C \S+ )?([a-z]+(?:-[a-z]+)*)", "\n".join(shown())))
    assert named >= {"demo", "test", "setup-tpu"}
    assert named <= targets

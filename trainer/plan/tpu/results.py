"""Results of compiles, kept as JSON under a hash of all that they follow from."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

FORMAT = 1  # of the stored results, and of how they are found: another one is compiled again


def key(text: str, asked: dict[str, Any]) -> str:
    """Of a program and what was asked of it."""
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **asked}, sort_keys=True).encode())
    digest.update(text.encode())
    return digest.hexdigest()


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """What is stored under a key; None where there is nothing, or a file that is not as it was written."""
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_text())
        if content["key"] == name and content["sha256"] == _digest(content["compiled"]):
            return dict(content["compiled"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    print(f"{path} is broken: the program is compiled again", file=sys.stderr)
    return None


def save(folder: Path, name: str, compiled: dict[str, Any]) -> None:
    """Store a result, whole or not at all. A folder that cannot be written costs the next one the time, no more."""
    content = {"key": name, "sha256": _digest(compiled), "compiled": compiled}
    partial = folder / f".{name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, folder / f"{name}.json")
    except OSError as error:
        print(f"the result of the compile is not kept: {error}", file=sys.stderr)


def _digest(compiled: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(compiled, sort_keys=True).encode()).hexdigest()

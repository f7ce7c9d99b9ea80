"""A folder of an export: whole or not at all, never over another, with a note of where its weights come from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from trainer.model.config import GemmaConfig

FORMAT = 1


@contextmanager
def new_folder(folder: Path, besides: str | None = None) -> Iterator[Path]:
    """Gives a temporary folder beside it to write into, which becomes `folder` in the end.

    Raises ConfigError where `folder` exists and does not hold the same bytes; it is left alone either way. What lies in
    its folder `besides` is not compared: of that the other files hold a digest, which whoever
    reads it checks.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes private folders; an export is to be shared
        yield temporary
        if folder.exists():
            _check_equal(folder, temporary, besides)
        else:
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_equal(existing: Path, fresh: Path, besides: str | None) -> None:
    if not existing.is_dir() or _digests(existing, besides) != _digests(fresh, besides):
        raise ConfigError(
            f"{existing} exists and holds something else than this export: "
            "set export.output to a new folder, or remove that one"
        )


def _digests(folder: Path, besides: str | None) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path: path.relative_to(folder) for path in files}
    return {str(name): sha256(path) for path, name in names.items() if name.parts[0] != besides}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON that people can read, in UTF-8."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a folder of weights") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): restore it from where the folder came from") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object: restore it from where the folder came from")
    return content


def write_origin(
    folder: Path, config: GemmaConfig, vocab_size: int, dtype: str, provenance: dict[str, Any], files: list[Path]
) -> None:
    """`gemcutter.json`: the model, where its weights come from, and the digests of the files that hold them."""
    content = {
        "format": FORMAT,
        "provenance": provenance,
        "model": dataclasses.asdict(config),
        "vocab_size": vocab_size,
        "dtype": dtype,
        "sha256": {str(file.relative_to(folder)): sha256(file) for file in files},
    }
    write_json(folder / "gemcutter.json", content)

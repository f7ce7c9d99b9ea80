"""The published folder: complete or not there at all, and never another's."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from conf.schema import FORMAT
from data_pipeline.card.changes import changes, differences
from data_pipeline.durable import sync
from data_pipeline.lock import locked

KIND = "curated_text"
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def published(output: Path, config: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in the folder where it is the result of this very job; None where there is no folder yet.

    Raises ConfigError where the folder holds anything else.
    """
    path = output / "manifest.json"
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(
                f"curate.output={output} exists and holds no curated text (no manifest.json): "
                "choose another curate.output, or move that away"
            )
        return None
    manifest = manifest_of(output, f"delete the folder {output} and curate again")
    remedy = f"choose another curate.output, or delete the folder {output} to curate again"
    if changes := differences(manifest["config"], config):
        raise ConfigError(f"{output} was curated with other keys ({'; '.join(changes)}): {remedy}")
    if changes := differences(manifest["inputs"], inputs):
        raise ConfigError(f"{output} was curated from other files ({'; '.join(changes)}): {remedy}")
    return manifest


def manifest_of(folder: Path, remedy: str) -> dict[str, Any]:
    """The manifest of curated text. Raises ConfigError or DataError where the folder holds none that can be read."""
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a manifest ({error}): {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ConfigError(f"{folder} holds something else than curated text: choose another folder")
    if manifest.get("format", 0) > FORMAT:
        raise DataError(f"{path} has format {manifest['format']}, this version reads up to {FORMAT}: upgrade gemcutter")
    if missing := {"lineage", "counts", "files", "inputs", "config"} - manifest.keys():
        raise DataError(f"{path} lacks {', '.join(sorted(missing))}: {remedy}")
    return manifest


@contextmanager
def appearing(output: Path, work: Path) -> Iterator[Path]:
    """A locked folder beside `output` that becomes it when the block ends well, and is removed when it does not.

    What a killed run left there is removed first. Raises ConfigError when another process is at work on it, and
    DataError where the disk is in trouble: what was done until then stays in `work`.
    """
    folder = output.with_name(output.name + ".partial")
    is_there = False
    with locked(folder, "curate.output"):
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
            sync(folder)
            os.rename(folder, output)  # over an empty folder too; never over a full one
            is_there = True
            sync(output.parent)
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            state = (
                "the text is there, but may not outlast a power cut"
                if is_there
                else f"nothing was published, and what was done is kept in {work}"
            )
            raise DataError(
                f"writing {folder} or {work} failed ({error}): {state}; free space or choose another curate.output"
            ) from error
        finally:
            if not is_there:
                shutil.rmtree(folder, ignore_errors=True)


def place(source: Path, target: Path) -> None:
    """Have a committed file appear under another name too, without a copy where the file system can do that."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file, and have it outlast a power cut."""
    shutil.copyfile(source, target)
    sync(target)


def card_of(folder: Path) -> dict[str, Any]:
    """The data card of curated text. Raises DataError where the folder holds none that another can be compared to."""
    path = folder / "data_card.json"
    try:
        card: dict[str, Any] = json.loads(path.read_text("utf-8"))
        changes(card, card)  # what can be compared to itself can be to others
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as a data card ({error}): correct curate.previous") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no data card (what is missing: {error}): correct curate.previous") from error
    return card


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", newline="\n")
    sync(path)


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

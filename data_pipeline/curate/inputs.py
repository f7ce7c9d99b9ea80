"""Fingerprints of what a curation reads, by the key that names it: they tell another set of inputs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from conf.schema import SOURCE_LISTS, Curate, Job, Source, get
from data_pipeline.curate import inspectors
from data_pipeline.curate.models import Benchmarks
from data_pipeline.sources import label, local
from data_pipeline.tokenize_text import file_sha256


def fingerprints(job: Job, benchmarks: Benchmarks | None) -> dict[str, Any]:
    """Of the files of local sources their names and sizes, of all other files their content. Datasets and the Python
    environment have no cheap fingerprint. Raises ConfigError where a file is missing."""
    keys = job.curate
    found: dict[str, Any] = {
        f"{path.removeprefix('curate.')}[{n}]": local.fingerprint(source)
        for path in SOURCE_LISTS
        for n, source in enumerate(get(job, path))
        if source.kind == "local"
    }
    for key, paths in _files(keys).items():
        if paths:
            found[key] = [_sha256(path, f"curate.{key}") for path in paths]
    if mark := inspectors.mark_of_key(inspectors.key_of(keys.private.key_file)):
        found["private.key_file"] = mark
    if benchmarks is not None:
        for name, paths in benchmarks.files().items():
            found[f"decontaminate.{name}"] = [_sha256(path, "curate.decontaminate") for path in paths]
    return found


def versions(source: Source) -> dict[str, list[int] | None]:
    """Size and time of the last change, in ns, of each file of a local source, by its path; None where it is gone.

    They tell a file that was changed since; another machine has other times, so they are no fingerprint.
    """
    return {str(file.path): _version(file.path) for file in local.files(source)} if source.kind == "local" else {}


def unchanged(source: Source, seen: dict[str, list[int] | None]) -> None:
    """Raise DataError where one of the files has another version than it had."""
    for path, version in seen.items():
        if _version(Path(path)) != version:
            raise DataError(
                f"{path} of source {label(source)!r} changed while it was being read: nothing was published; start "
                "again once nobody writes to it, or leave it out of curate.sources[].paths"
            )


def _version(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _files(keys: Curate) -> dict[str, list[str]]:
    earlier = [str(Path(folder, "manifest.json")) for folder in keys.duplicates.earlier]
    return {
        "calibrated": [keys.calibrated] if keys.calibrated else [],
        "quality.model": [keys.quality.model] if keys.quality.model else [],
        "toxicity.model": [keys.toxicity.model] if keys.toxicity.model else [],
        "harm.blocked": keys.harm.blocked,
        "harm.prohibited": keys.harm.prohibited,
        "harm.lexicons": keys.harm.lexicons,
        "duplicates.earlier": earlier,
    }


def _sha256(path: str, key: str) -> str:
    try:
        found = file_sha256(Path(path).expanduser())
    except DataError as error:
        raise ConfigError(f"{key}: {error}: correct the path") from error
    assert found is not None
    return found

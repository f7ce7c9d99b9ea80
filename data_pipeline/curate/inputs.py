"""Fingerprints of what a curation reads, by the key that names it: they tell another set of inputs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from conf.schema import SOURCE_LISTS, Curate, Job, get
from data_pipeline.curate import inspectors
from data_pipeline.curate.models import Benchmarks
from data_pipeline.sources import local
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

"""The `curate` job: from sources to a folder of Parquet with its data card. What happens in between: `road.py`."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from conf.exits import ConfigError
from conf.schema import SOURCE_LISTS, Curate, Job, Source
from data_pipeline.curate import inputs, models, publish, road
from data_pipeline.curate.stages import Stages
from data_pipeline.engine.local import Local
from data_pipeline.engine.ray import Ray
from data_pipeline.engine.stage import Engine
from data_pipeline.lock import locked
from data_pipeline.sources import without_folders

# Keys that name files and folders.
FILES = (
    "calibrated", "quality.model", "toxicity.model", "duplicates.earlier", "decontaminate.folder",
    "decontaminate.benchmarks", "private.key_file", "harm.blocked", "harm.prohibited", "harm.lexicons",
)  # fmt: skip
# Where the text lies and who does the work does not change it.
NOT_IDENTITY = ("output", "work", "previous", "workers", "engine", "ray_address")


def curate(job: Job) -> dict[str, Any]:
    """Curate what `job.curate` names into the folder `job.curate.output`.

    Returns the summary: `output`, the counts of the manifest (documents and bytes in and kept, dropped by reason,
    scrubbed, per source, languages), `parts`, `lineage`, and `reused`, which is true where the folder already held the
    result of this configuration and nothing was done.

    Raises ConfigError where a source is missing or the folder holds something else; DataError where a file is not what
    its name says, a source gives no document, or nothing is left. Then the folder does not exist, and what was done
    until then is kept for the next start.
    """
    keys = _with_whole_paths(job.curate)
    job = dataclasses.replace(job, curate=keys)
    if not keys.sources:
        raise ConfigError("curate.sources is empty: name at least one source, for example [{kind: python_env}]")
    output = Path(keys.output)
    work = (output.with_name(output.name + ".work") if keys.work is None else Path(keys.work)).absolute()
    config, benchmarks = _identity(keys), models.benchmarks(keys.decontaminate, keys.private.key_file)
    fingerprints = inputs.fingerprints(job, benchmarks)
    manifest = publish.published(output, config, fingerprints)
    reused = manifest is not None
    if manifest is None:
        with locked(work, "curate.output" if keys.work is None else "curate.work"):
            manifest = publish.published(output, config, fingerprints)  # by who was at work here until now
            reused = manifest is not None
            if manifest is None:
                with publish.appearing(output, work) as folder, _engine(keys) as engine:
                    manifest = road.curate(job, Stages(work, engine), benchmarks, config, fingerprints, folder)
    if keys.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "output": str(output),
        **manifest["counts"],
        "parts": len(manifest["files"]),
        "lineage": manifest["lineage"],
        "reused": reused,
    }


def _with_whole_paths(keys: Curate) -> Curate:
    """The same files by whole paths, but for sources, which are shown as they are named: those who do tasks may have
    another working directory and another home."""
    keys = copy.deepcopy(keys)
    for path in FILES:
        *sections, name = path.split(".")
        section = getattr(keys, sections[0]) if sections else keys
        setattr(section, name, _each(getattr(section, name), lambda path: str(Path(path).expanduser().absolute())))
    return keys


def _engine(keys: Curate) -> AbstractContextManager[Engine]:
    return Ray(keys.ray_address) if keys.engine == "ray" else Local(keys.workers)


def _identity(keys: Curate) -> dict[str, Any]:
    """The keys that the curated text depends on, without folders of this machine: what is in the files that they name
    is known by their fingerprints."""
    config = {key: value for key, value in dataclasses.asdict(keys).items() if key not in NOT_IDENTITY}
    for path in SOURCE_LISTS:
        *sections, name = path.removeprefix("curate.").split(".")
        section = config if not sections else config[sections[0]]
        section[name] = [dataclasses.asdict(without_folders(Source(**source))) for source in section[name]]
    for path in FILES:
        *sections, name = path.split(".")
        section = config if not sections else config[sections[0]]
        section[name] = _each(section[name], lambda path: Path(path).name)
    return config


def _each(paths: Any, change: Callable[[str], str]) -> Any:
    """A path changed, or each of several."""
    if isinstance(paths, dict):
        return {name: _each(path, change) for name, path in paths.items()}
    if isinstance(paths, list):
        return [_each(path, change) for path in paths]
    return None if paths is None else change(paths)

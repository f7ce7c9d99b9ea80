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
from conf.schema import SOURCE_LISTS, Curate, Job, Source, get
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
_MARK = "gemcutter-curate-work"  # a file that a work folder has
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
    output = Path(keys.output).resolve()  # a link to a folder could not be replaced by one
    work = output.with_name(output.name + ".work") if keys.work is None else Path(keys.work).expanduser().resolve()
    _check_apart(output, work)
    config, benchmarks = _identity(keys), models.benchmarks(keys.decontaminate, keys.private.key_file)
    fingerprints = inputs.fingerprints(job, benchmarks)
    manifest = publish.published(output, config, fingerprints)
    reused = manifest is not None
    if manifest is None:
        with locked(work, "curate.output" if keys.work is None else "curate.work"):
            _mark(work)
            manifest = publish.published(output, config, fingerprints)  # by who was at work here until now
            reused = manifest is not None
            if manifest is None:
                with publish.appearing(output, work) as folder, _engine(keys) as engine:
                    manifest = road.curate(job, Stages(work, engine), benchmarks, config, fingerprints, folder)
    if keys.work is None and (work / _MARK).is_file():
        shutil.rmtree(work, ignore_errors=True)
    return {
        "output": str(output),
        **manifest["counts"],
        "parts": len(manifest["files"]),
        "lineage": manifest["lineage"],
        "reused": reused,
    }


def _check_apart(output: Path, work: Path) -> None:
    """Raise ConfigError where the folders of the text and of the work get into each other's way."""
    if output == work or output in work.parents or work in output.parents:
        raise ConfigError(
            f"curate.work={work} and curate.output={output} lie within one another: name folders apart, as one of them "
            "appears when the other is done"
        )
    here = Path.cwd().resolve()
    if output == here or output in here.parents:
        raise ConfigError(f"curate.output={output} holds the working directory: name a folder of its own")


def _mark(work: Path) -> None:
    """Have a work folder be known as one. Raises ConfigError where it holds something else."""
    mark = work / _MARK
    if not mark.is_file():
        if any(work.iterdir()):
            raise ConfigError(
                f"{work}, where curation keeps what it did, holds something else: move that away, or set curate.work"
            )
        mark.write_text("What curation did; see curate.work.\n", "utf-8")


def _with_whole_paths(keys: Curate) -> Curate:
    """The same files by whole paths, but for sources, which are shown as they are named: those who do tasks may have
    another working directory and another home."""
    keys = copy.deepcopy(keys)
    for path in FILES:
        *sections, name = path.split(".")
        section = getattr(keys, sections[0]) if sections else keys
        setattr(section, name, _each(getattr(section, name), _whole))
    keys.previous = None if keys.previous is None else _whole(keys.previous)
    for path in SOURCE_LISTS:
        for source in get(Job(curate=keys), path):
            if source.dataset.startswith((".", "/", "~")):
                source.dataset = _whole(source.dataset)
    return keys


def _whole(path: str) -> str:
    return str(Path(path).expanduser().absolute())


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

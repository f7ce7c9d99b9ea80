"""Command line overrides -> a checked, typed `Job`; every mistake is found before anything starts.

Hydra stops at the first error and has no suggestions, so the overrides are first held against the schema one by one.
Only entry points import this module; what they hand on is a plain dataclass.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf import schema
from conf.check import check
from conf.exits import ConfigError

ROOT = Path(__file__).parent


@cache
def register() -> None:
    """Make the schema known to Hydra as `job_schema`, the first entry of every defaults list."""
    ConfigStore.instance().store(name="job_schema", node=schema.Job)


@cache
def groups() -> dict[str, list[str]]:
    """Configuration groups and their options: the folders of `conf/` and the files in them."""
    folders = sorted(path for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def compose(job: str, overrides: Iterable[str] = ()) -> schema.Job:
    """The job that `gemcutter <job> <overrides>` describes.

    Raises ConfigError listing every unknown key or option, wrong type and impossible combination at once.
    """
    overrides = list(overrides)
    refuse(override_problems(overrides))
    register()
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        try:
            config = hydra_compose(job, overrides=for_hydra(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"the configuration of `{job}` does not compose: {error}") from error
    return typed(config, job)


def for_hydra(overrides: Iterable[str]) -> list[str]:
    """Overrides as Hydra takes them: of a mapping it must be told that its names are the user's own, by ++."""
    mappings = tuple(f"{key}=" for key, value in schema.flatten(schema.Job()).items() if isinstance(value, dict))
    return [f"++{text}" if text.startswith(mappings) else text for text in overrides]


def typed(config: DictConfig, kind: str) -> schema.Job:
    """A job's composed configuration as the dataclass it is, checked. Raises ConfigError with every problem."""
    try:
        job = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration has a value that does not resolve: {error}") from error
    assert isinstance(job, schema.Job)
    refuse(check(job, kind))
    return job


def refuse(problems: list[str]) -> None:
    """Raise ConfigError with all problems, if there are any."""
    if problems:
        head = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{head} with the configuration:", *(f"  {problem}" for problem in problems)]))


def override_problems(overrides: Iterable[str]) -> list[str]:
    """What is wrong with each override taken alone: unknown keys and options with suggestions, wrong types."""
    problems, tried = [], OmegaConf.structured(schema.Job)  # which takes a while, so it is made once
    for text in overrides:
        try:
            (override,) = OverridesParser.create().parse_overrides([text])
        except HydraException as error:
            problems.append(f"{text!r} is not an override: write key=value ({str(error).splitlines()[0]})")
            continue
        if not override.key_or_group.startswith(("hydra.", "hydra/")):
            problems += _problems_of(override, text, tried)
    return problems


def _problems_of(override: Override, text: str, tried: DictConfig) -> list[str]:
    if override.is_delete():
        return [f"{text}: nothing can be deleted; give {override.key_or_group} another value"]
    path, options, values = override.key_or_group, groups().get(override.key_or_group), values_of(override)
    keys = schema.flatten(schema.Job())
    if options is not None:
        unknown = [value for value in values if value not in options]
        return [f"{path}={value}: no such option{suggestion(str(value), options)}" for value in unknown]
    if path not in keys:
        sections = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)}
        if path in sections:
            return [f"{text}: {path} is a section; set one of its keys, such as {_example(path, keys)}"]
        return [f"{text}: no such key{suggestion(path, [*keys, *groups()])}"]
    if override.is_add() or (override.is_force_add() and not isinstance(keys[path], dict)):
        return [f"{text}: every key exists already; write it without +"]
    return [problem for value in values if (problem := _type_problem(tried, path, value))]


def values_of(override: Override) -> list[Any]:
    """The values an override stands for: one, or each point of a sweep."""
    if not override.is_sweep_override():
        return [override.value()]
    points = (f"{override.key_or_group}={text}" for text in override.sweep_string_iterator())
    return [point.value() for point in OverridesParser.create().parse_overrides(list(points))]


def _type_problem(tried: DictConfig, path: str, value: object) -> str | None:
    if isinstance(value, str) and "${" in value:
        return None  # an interpolation has a type only once everything is composed
    try:
        OmegaConf.update(tried, path, value)
    except OmegaConfBaseException as error:
        return f"{path}={value}: {str(error).splitlines()[0]} (gemcutter config shows the type of each key)"
    return None


def _example(section: str, keys: Iterable[str]) -> str:
    return next(key for key in keys if key.startswith(section + "."))


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?` for the closest known words, or nothing."""
    known = list(known)
    last = {key: key.rsplit(".", 1)[-1] for key in known}
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if not close and (
        tails := difflib.get_close_matches(word.rsplit(".", 1)[-1], list(last.values()), n=1, cutoff=0.75)
    ):
        close = [key for key in known if last[key] == tails[0]][:2]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else "; `gemcutter config` lists every key"

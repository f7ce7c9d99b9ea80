"""A Hydra job: overrides checked, composed by Hydra (`--help`, `--cfg`, `-m` and plugins included), then started."""

from __future__ import annotations

import hashlib
import re
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from conf import compose, schema
from conf.exits import ERRORS, STOPPED
from launch import demo, local

# Flags of Hydra that choose another configuration, which the worker would not know of.
_FOREIGN_FLAGS = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
# Flags of Hydra that take a value, so that the value is not mistaken for an override.
_VALUED_FLAGS = (
    *_FOREIGN_FLAGS, "--cfg", "-c", "--package", "-p", "--experimental-rerun", "--info", "-i",
)  # fmt: skip


def run_job(kind: str, arguments: list[str]) -> int:
    """Check all overrides, compose, and run every point of the sweep (or the one job); returns the first failing code.

    A stop (75, or a signal) ends the sweep. Raises ConfigError before anything starts when an override is wrong.
    """
    refuse_flags(arguments)
    overrides = overrides_among(arguments)
    compose.refuse(compose.override_problems(overrides))
    compose.register()
    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path="pkg://conf", config_name=kind)
    def start(config: DictConfig) -> None:
        if any(code == STOPPED or code >= 128 for code in codes):
            return
        try:
            job = compose.typed(config, kind)
            point = list(HydraConfig.get().overrides.task)
            trains = kind in ("train", "demo")  # the others look for a run that is there, or make it
            if HydraConfig.get().mode == RunMode.MULTIRUN and job.run_id is None and trains:
                job.run_id = schema.run_id(job) + sweep_suffix(overrides, point)
                point.append(f"run_id={job.run_id}")
            codes.append(demo.run(job, point) if kind == "demo" else local.run(kind, job, point))
        except ERRORS as error:
            print(f"gemcutter {kind}: {error}", file=sys.stderr)
            codes.append(error.code)

    sys.argv = [f"gemcutter {kind}", *compose.for_hydra(arguments)]
    start()
    return next((code for code in codes if code), 0)


def refuse_flags(arguments: list[str]) -> None:
    """Raise ConfigError for what Hydra would take and the worker would not get, or Hydra itself trips over."""
    problems = [
        f"{argument}: the worker reads the configuration of the package only. Give overrides, or add a file to "
        "conf/experiment of your checkout and choose it with experiment=<its name>"
        for argument in arguments
        if argument.split("=", 1)[0] in (*_FOREIGN_FLAGS, "hydra.searchpath")
    ]
    flags = {argument.split("=", 1)[0] for argument in arguments}
    if flags & {"--cfg", "-c"} and flags & {"--multirun", "-m"}:
        problems.append("--cfg prints one configuration and -m runs many: leave one of them out")
    compose.refuse(problems)


def overrides_among(arguments: list[str]) -> list[str]:
    """The arguments that are overrides, not flags of Hydra or their values."""
    overrides, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = argument in _VALUED_FLAGS
        else:
            overrides.append(argument)
    return overrides


def sweep_suffix(swept: list[str], point: list[str]) -> str:
    """What keeps two points of a sweep apart when the keys that differ are no part of a run's identity.

    `-m steps=100,200` gives run ids ending in `-steps-100-` and `-steps-200-` and four hex digits.
    """
    parser = OverridesParser.create()
    keys = {override.key_or_group for override in parser.parse_overrides(swept) if override.is_sweep_override()}
    free = {key for key in keys if not key.startswith(schema.IDENTITY)}
    chosen = [text for text in point if text.split("=", 1)[0].lstrip("+") in free]
    if not chosen:
        return ""
    # The words are for people; the hash keeps apart what differs only in characters that a name may not hold.
    words = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") for text in chosen)
    return f"-{words}-{hashlib.sha256(' '.join(chosen).encode()).hexdigest()[:4]}"

"""The limits of rules that a job asks for: the published ones, those of a reference set, and the job's own changes."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from conf.exits import ConfigError
from data_pipeline.signals.calibrate import Calibrated
from data_pipeline.signals.thresholds import DEFAULTS, OTHERS, SETS, Thresholds

_KEY = "curate.thresholds"


def limits(changes: Mapping[str, Any], calibrated: Mapping[str, Calibrated]) -> dict[str, Thresholds]:
    """Thresholds of each language that has its own, and of the others under `*`.

    A language that is changed and has none of its own begins with those of the others. Raises ConfigError where a
    change names no rule set, no limit, or gives no number.
    """
    found = {**DEFAULTS, **{language: one.thresholds for language, one in calibrated.items()}}
    others = _changed(found[OTHERS], changes.get(OTHERS, {}), f"{_KEY}.{OTHERS}")
    found[OTHERS] = others
    for language, of_language in changes.items():
        if language != OTHERS:
            found[language] = _changed(found.get(language, others), of_language, f"{_KEY}.{language}")
    return found


def plain(thresholds: Mapping[str, Thresholds]) -> dict[str, Any]:
    """Thresholds as JSON has them."""
    return {language: dataclasses.asdict(one) for language, one in sorted(thresholds.items())}


def _changed(base: Thresholds, changes: Any, place: str) -> Thresholds:
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{place}={changes!r} is no mapping of rule sets ({', '.join(SETS)}) to limits")
    sets: dict[str, Any] = {}
    for name, of_set in changes.items():
        if name not in SETS:
            raise ConfigError(f"{place}.{name}: there is no such rule set{_meant(name, SETS)}")
        if of_set is None:
            sets[name] = None
            continue
        if not isinstance(of_set, Mapping):
            raise ConfigError(f"{place}.{name}={of_set!r} is neither null nor a mapping of limits to values")
        known = {field.name for field in dataclasses.fields(SETS[name])}
        for limit, value in of_set.items():
            if limit not in known:
                raise ConfigError(f"{place}.{name}.{limit}: there is no such limit{_meant(limit, known)}")
            _check(f"{place}.{name}.{limit}", limit, value)
        sets[name] = dataclasses.replace(getattr(base, name) or SETS[name](), **of_set)
    return dataclasses.replace(base, **sets)


def _check(place: str, limit: str, value: Any) -> None:
    if limit == "terminal_punctuation":
        if not isinstance(value, bool):
            raise ConfigError(f"{place}={value!r} is neither true nor false")
    elif value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or value < 0):
        raise ConfigError(f"{place}={value!r} is neither null nor a number from 0 on")


def _meant(name: object, known: Any) -> str:
    close = difflib.get_close_matches(str(name), sorted(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(sorted(known))}"

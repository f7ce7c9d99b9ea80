"""What differs from the card of an earlier version of a collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.exits import DataError

FORMAT = 2
_COMPARED = (1, FORMAT)


def changes(before: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `changes` of `card`: pairs [before, now], the largest difference first; what is the same is left out.

    `before` is a card of format 1 or 2. One of format 1 had other keys: only those that both have are compared. Raises
    DataError where it is of another format, or no card.
    """
    if before.get("format") not in _COMPARED:
        raise DataError(
            f"the data card of the version before has format {before.get('format')!r}, this version compares with "
            f"{' and '.join(map(str, _COMPARED))}: name a folder that `curate` wrote, or use the version that wrote it"
        )
    if missing := {"lineage", "counts", "config"} - before.keys():
        raise DataError(
            f"the data card of the version before lacks {', '.join(sorted(missing))}: name a folder that `curate` wrote"
        )
    old, new = before["counts"], card["counts"]
    config_before, config = dict(before["config"]), dict(card["config"])
    if before["format"] != FORMAT:
        config_before, config = _common(config_before, config), _common(config, config_before)
    return {
        "lineage": before["lineage"],
        "documents_kept": [old["documents_kept"], new["documents_kept"]],
        "bytes_kept": [old["bytes_kept"], new["bytes_kept"]],
        "config": differences(config_before, config),
        "sources": _pairs(*({name: one["documents_kept"] for name, one in of["sources"].items()} for of in (old, new))),
        "dropped": _pairs(old["dropped"], new["dropped"]),
        "languages": _pairs(old["languages"], new["languages"]),
    }


def differences(before: Any, now: Any, path: str = "curate") -> list[str]:
    """Dotted paths whose values differ, with both values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [one for key in keys for one in differences(before.get(key), now.get(key), f"{path}.{key}")]
    if _is_of_mappings(before) and _is_of_mappings(now) and len(before) == len(now):
        both = enumerate(zip(before, now, strict=True))
        return [one for n, (old, new) in both for one in differences(old, new, f"{path}[{n}]")]
    return [] if before == now else [f"{path} was {before!r}, is {now!r}"]


def _common(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in other}


def _is_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)


def _pairs(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, list[int]]:
    both = {name: [before.get(name, 0), now.get(name, 0)] for name in before.keys() | now.keys()}
    changed = [(name, pair) for name, pair in both.items() if pair[0] != pair[1]]
    return dict(sorted(changed, key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])))

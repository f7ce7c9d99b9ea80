"""Rows of a Hugging Face dataset, streamed: from the Hub, or from a local folder of data files."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from conf.schema import Source
from data_pipeline.document import Record, require
from data_pipeline.sources.rows import no_text_field, record_of_row


@dataclass(frozen=True)
class Shard:
    """A piece of a dataset, by its place among all pieces: what the library itself cuts, most often a file each.

    revision   commit of the Hub, of a dataset there; of a folder, a digest of the names, sizes and times of its files
    """

    number: int
    of: int
    revision: str


def pieces(source: Source) -> list[Shard]:
    """The shards of the dataset. Raises ConfigError where dataset, configuration or split do not exist."""
    revision = _revision(source)
    count = _opened(source, revision).num_shards
    return [Shard(number, count, revision) for number in range(count)]


def records(shard: Shard, source: Source) -> Iterator[Record]:
    """A record per row, in the dataset's order; `url` is the row's own, else the dataset's name and the row number.

    Raises ConfigError where the text field does not exist, DataError where rows cannot be read.
    """
    rows = _opened(source, shard.revision)
    place, name = _place(source), shown(source.dataset)
    if shard.of > 1:
        rows = rows.shard(shard.of, shard.number)
        name = f"{name}/{shard.number}"
    number = 0
    try:
        for row in rows:
            number += 1
            locator = f"huggingface:{name}/{source.split}#{number}"
            if number == 1 and source.text_field not in row:
                raise no_text_field(f"the dataset {place}", source.text_field, set(row))
            if isinstance(row.get(source.text_field), str):
                record = record_of_row(row, locator, source.text_field)
            else:
                record = Record("", "text", locator, reason="broken_record")
            yield record if record.url else replace(record, url=record.locator)
    except (OSError, ValueError) as error:
        # Its message may quote a row, which may be personal.
        detail = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(
            f"the dataset {place} cannot be read after row {number} ({detail}): mend its files, or start again where "
            "the connection failed"
        ) from error


def _place(source: Source) -> str:
    return f"{source.dataset} (config={source.config}, split={source.split})"


def _revision(source: Source) -> str:
    """What tells that the dataset is the same; "" where that cannot be known without a connection."""
    folder = Path(source.dataset).expanduser()
    if folder.is_dir():
        files = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*"))]
        seen = [(name, found.st_size, found.st_mtime_ns) for name, found in files if not stat.S_ISDIR(found.st_mode)]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    require("datasets")
    import huggingface_hub

    try:
        return str(huggingface_hub.HfApi().dataset_info(source.dataset).sha)
    except (OSError, ValueError):  # whether it can be opened at all is asked next
        return ""


def _opened(source: Source, revision: str) -> Any:
    require("datasets")
    import datasets

    commit = None if Path(source.dataset).expanduser().is_dir() else revision or None
    try:
        return datasets.load_dataset(source.dataset, source.config, split=source.split, streaming=True, revision=commit)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"curate.sources: the dataset {_place(source)} cannot be opened: {error}. Check dataset, config and split, "
            "and for a name on the Hub the connection; a local folder must exist and hold data files"
        ) from error


def shown(dataset: str) -> str:
    """The name of a dataset in locators. A folder's own path is this machine's affair; its name tells rows apart."""
    return dataset.rstrip("/").rsplit("/", 1)[-1] if dataset.startswith((".", "/", "~")) else dataset

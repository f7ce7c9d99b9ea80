"""Rows of a Hugging Face dataset, streamed: from the Hub, or from a local folder of data files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from conf.exits import ConfigError, DataError
from conf.schema import Source
from data_pipeline.document import Record, require
from data_pipeline.sources.rows import no_text_field, record_of_row


def read(source: Source) -> Iterator[Record]:
    """A record per row, in the dataset's order; `url` is the row's own, else the dataset's name and the row number.

    Raises ConfigError where the dataset, configuration, split or text field does not exist, DataError where rows cannot
    be read.
    """
    require("datasets")
    import datasets

    place = f"{source.dataset} (config={source.config}, split={source.split})"
    try:
        rows = datasets.load_dataset(source.dataset, source.config, split=source.split, streaming=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"curate.sources: the dataset {place} cannot be opened: {error}. Check dataset, config and split, and "
            "for a name on the Hub the connection; a local folder must exist and hold data files"
        ) from error
    name = shown(source.dataset)
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
            f"the dataset {place} cannot be read after row {number} ({detail}): nothing was written; mend its files, "
            "or start again where the connection failed"
        ) from error


def shown(dataset: str) -> str:
    """The name of a dataset in locators. A folder's own path is this machine's affair; its name tells rows apart."""
    return dataset.rstrip("/").rsplit("/", 1)[-1] if dataset.startswith((".", "/", "~")) else dataset

"""The task that reads text of an earlier curation, none of which may come again.

Its documents get numbers before all new ones, so that they are preferred; what is near to one of them goes. What was
cut out of them is not known any more, so a text is found equal only to what is left of another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conf.exits import DataError
from data_pipeline.batched import batched
from data_pipeline.curate.reading import BATCH_CHARACTERS, SHINGLING
from data_pipeline.duplicates import exact, minhash, ranks
from data_pipeline.signals.tokens import Tokens


@dataclass(frozen=True)
class Earlier:
    """A part of earlier curated text with its SHA-256; `number` is the upper half of its documents' numbers."""

    path: str
    sha256: str
    number: int


def read_earlier(task: Earlier, folder: Path) -> dict[str, Any]:
    """Write fingerprints, bands, sketches and ranks. Raises DataError where the part is not what its manifest says."""
    first = np.uint64(task.number << 32)
    count, marks, measured = 0, [np.empty((0, 2), np.uint64)], []
    try:
        with open(task.path, "rb") as part:
            found = hashlib.file_digest(part, "sha256").hexdigest()
        if found != task.sha256:
            raise DataError(
                f"{task.path} of earlier curated text has the SHA-256 {found}, its manifest says {task.sha256}: copy "
                "it again, or leave its folder out of curate.duplicates.earlier"
            )
        with pq.ParquetFile(task.path) as file:
            texts = (text for batch in file.iter_batches(columns=["text"]) for text in batch["text"].to_pylist())
            for batch in batched(texts, len, BATCH_CHARACTERS):
                numbers = first + np.arange(count, count + len(batch), dtype=np.uint64)
                marks.append(exact.fingerprints(batch))
                measured.append((numbers, minhash.measure(Tokens.of(batch), SHINGLING)))
                count += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{task.path} of earlier curated text cannot be read ({error}): copy it again, or leave its folder out of "
            "curate.duplicates.earlier"
        ) from error
    numbers = first + np.arange(count, dtype=np.uint64)
    exact.write(folder, numbers, np.concatenate(marks))
    minhash.write(folder, measured)
    ranks.write(folder, numbers, np.zeros(count), np.zeros(count), np.zeros(count))
    return {"documents": count}

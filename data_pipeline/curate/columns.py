"""The columns of curated text, and of the documents that a task read."""

from __future__ import annotations

import pyarrow as pa

from data_pipeline.private.found import KINDS
from data_pipeline.signals import COLUMNS

SCRUBBED = tuple(f"scrubbed_{kind}" for kind in KINDS)
_TYPES = {"int32": pa.int32(), "float32": pa.float32()}
_MEASURED = [
    ("language_confidence", pa.float32()),
    *((name, _TYPES[column.dtype]) for name, column in COLUMNS.items()),
    *((name, pa.int32()) for name in SCRUBBED),
    ("bad_words", pa.int32()),
    ("toxicity", pa.float32()),
]
_STATED = [
    *((name, pa.string()) for name in ("id", "text", "url", "source", "language", "license")),
    ("quality", pa.float32()),
    ("stated_language", pa.string()),
    ("extractor", pa.string()),
]
# How many documents one stands for: equal ones, and near-duplicates that were left of those.
COPIES = ("exact_copies", "near_copies")

READ = pa.schema([*_STATED, *_MEASURED, ("extracted_bytes", pa.int64()), ("reason", pa.string())])
KEPT = pa.schema([*_STATED, *_MEASURED, *((name, pa.int64()) for name in COPIES), ("cut_characters", pa.int64())])
REMOVED = KEPT.append(pa.field("reason", pa.string()))

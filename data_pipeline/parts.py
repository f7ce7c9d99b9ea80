"""Curated text on disk: rows into numbered Parquet parts whose bytes depend on the rows alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.private.found import KINDS

SIGNALS = [
    ("language_confidence", pa.float32()),
    ("words", pa.int32()),
    ("mean_word_length", pa.float32()),
    ("hashes", pa.float32()),
    ("ellipses", pa.float32()),
    ("bullet_lines", pa.float32()),
    ("ellipsis_lines", pa.float32()),
    ("alphabetic_words", pa.float32()),
    ("stop_words", pa.int32()),
    *((f"scrubbed_{kind}", pa.int32()) for kind in KINDS),
]
KEPT = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "text", "url", "source", "language", "license")),
        ("quality", pa.float32()),
        ("stated_language", pa.string()),
        *SIGNALS,
    ]
)
REMOVED = KEPT.append(pa.field("reason", pa.string()))

ROW_GROUP_BYTES = 8 * 2**20  # of text: what is held in memory, and what a reader takes at a time
ROW_GROUP_ROWS = 10_000


class PartWriter:
    """Writes rows to `part-00000.parquet`, ... in a folder; a new part begins once one holds `part_bytes` of text."""

    def __init__(self, folder: Path, schema: pa.Schema, part_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._schema, self._part_bytes = folder, schema, part_bytes
        self._files: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._row_bytes = 0
        self._part: pq.ParquetWriter | None = None
        self._documents = self._text_bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        size = len(row["text"].encode())
        self._row_bytes += size
        self._text_bytes += size
        self._documents += 1
        if self._row_bytes >= ROW_GROUP_BYTES or len(self._rows) >= ROW_GROUP_ROWS:
            self._write_group()
        if self._text_bytes >= self._part_bytes:
            self._finish_part()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last part. Returns name, bytes, sha256, documents and text_bytes of every part."""
        self._finish_part()
        return self._files

    def abandon(self) -> None:
        """Let go of an unfinished part without an account of it."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def _path(self) -> Path:
        return self._folder / f"part-{len(self._files):05d}.parquet"

    def _write_group(self) -> None:
        if not self._rows:
            return
        if self._part is None:
            self._part = pq.ParquetWriter(self._path(), self._schema, compression="zstd")
        self._part.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._row_bytes = [], 0

    def _finish_part(self) -> None:
        self._write_group()
        if self._part is None:
            return
        self._part.close()
        self._part = None
        path = self._path()
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._files.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": digest,
                "documents": self._documents,
                "text_bytes": self._text_bytes,
            }
        )
        self._documents = self._text_bytes = 0

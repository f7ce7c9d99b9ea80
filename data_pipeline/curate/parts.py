"""Numbered Parquet parts whose bytes depend on the rows alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROW_GROUP_BYTES = 8 * 2**20  # of text: what is held in memory, and what a reader takes at a time
ROW_GROUP_ROWS = 10_000


class PartWriter:
    """Writes rows to `<name>-00000.parquet`, ... in a folder; a new part begins once one holds `part_bytes` of text."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, part_bytes: float) -> None:
        self._folder, self._name, self._schema, self._part_bytes = folder, name, schema, part_bytes
        self._group_bytes = min(ROW_GROUP_BYTES, part_bytes)
        self._files: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._rows = self._held = 0
        self._part: pq.ParquetWriter | None = None
        self._documents = self._text_bytes = 0

    def add(self, table: pa.Table) -> None:
        """Take in rows, of about a row group at most."""
        if not table.num_rows:
            return
        self._tables.append(table)
        self._rows += table.num_rows
        self._held += _text_bytes(table)
        if self._held >= self._group_bytes or self._rows >= ROW_GROUP_ROWS:
            self._write_group()
        if self._text_bytes >= self._part_bytes:
            self._finish_part()

    def close(self) -> list[dict[str, Any]]:
        """Finish the last part. Returns name, bytes, sha256, documents and text_bytes of every part."""
        self._finish_part()
        return self._files

    def _path(self) -> Path:
        return self._folder / f"{self._name}-{len(self._files):05d}.parquet"

    def _write_group(self) -> None:
        if not self._tables:
            return
        if self._part is None:
            self._part = pq.ParquetWriter(self._path(), self._schema, compression="zstd")
        self._part.write_table(pa.concat_tables(self._tables).combine_chunks())
        self._documents += self._rows
        self._text_bytes += self._held
        self._tables, self._rows, self._held = [], 0, 0

    def _finish_part(self) -> None:
        self._write_group()
        if self._part is None:
            return
        self._part.close()
        self._part = None
        path = self._path()
        with path.open("rb") as file:
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


def _text_bytes(table: pa.Table) -> int:
    return int(pc.sum(pc.binary_length(table["text"])).as_py())

"""Tokenised documents to token shards: WebDataset tars, an index beside each, a table and a manifest. The writer.

Knows nothing of text, tokenizers or the order of training. `reader.py` is the other half of the format:

    shard-00000.tar   blocks of about 256 documents; block 000123 is the members
                      000123.lengths.npy  uint32, tokens of each document
                      000123.meta.json    {"ids": [...], "sources": [...]}
                      000123.tokens.npy   1-D uint16 or uint32, the documents end to end
    shard-00000.idx   JSON: of each block its offset, size and sha256 in the tar, and the lengths of its documents, so
                      that an order can be planned without reading tokens
    shards.parquet    a row per shard
    manifest.json     the header; written last, so a folder with a manifest is complete

Equal documents give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from webdataset import TarWriter

FORMAT = 1

_TAR_RECORD = 10_240  # a tar ends in zeros up to a whole record (POSIX pax: 20 blocks of 512 bytes)


@dataclass(frozen=True)
class Document:
    """One tokenised document: BOS, pieces, EOS."""

    id: str
    source: str
    tokens: np.ndarray  # 1-D, integer
    bytes: int  # UTF-8 bytes of the text the tokens encode


def write_shards(
    documents: Iterable[Document],
    folder: str | Path,
    *,
    shard_tokens: int,
    block_documents: int,
    tokenizer_sha256: str,
    vocab_size: int,
    config: dict[str, Any],
    lineage: str,
) -> dict[str, Any]:
    """Write documents, in the order given, as token shards into a folder without a manifest; returns the manifest.

    A shard ends with the first block that brings it to `shard_tokens` tokens. Left-overs of an interrupted run are
    removed first. `config` and `lineage` (sha256 of what the documents were made from) are recorded as they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("shard-*.tar", "shard-*.idx", "*.partial"):
        for left_over in folder.glob(pattern):
            left_over.unlink()
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    blocks = _blocks(documents, block_documents)
    rows: list[dict[str, Any]] = []
    text_bytes = 0
    first_block = 0
    for block in blocks:
        row, read = _write_shard(folder, len(rows), first_block, block, blocks, shard_tokens, dtype)
        rows.append(row)
        first_block += row["blocks"]
        text_bytes += read
    table = pa.Table.from_pylist(rows, schema=_SHARDS)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    publish(folder / "shards.parquet", buffer.getvalue())
    manifest = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer_sha256,
        "vocab_size": vocab_size,
        "dtype": dtype.name,
        "config": config,
        "lineage": lineage,
        "totals": {
            "shards": len(rows),
            "blocks": first_block,
            "documents": sum(row["documents"] for row in rows),
            "tokens": sum(row["tokens"] for row in rows),
            "text_bytes": text_bytes,
        },
        "shards": {"name": "shards.parquet", "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()},
    }
    publish(folder / "manifest.json", (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
    return manifest


_SHARDS = pa.schema(
    [
        ("name", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("index_sha256", pa.string()),
        ("documents", pa.int64()),
        ("tokens", pa.int64()),
        ("blocks", pa.int64()),
    ]
)


def _blocks(documents: Iterable[Document], block_documents: int) -> Iterator[list[Document]]:
    documents = iter(documents)
    while block := list(islice(documents, block_documents)):
        yield block


def _write_shard(
    folder: Path,
    number: int,
    first_block: int,
    block: list[Document] | None,
    following: Iterator[list[Document]],
    shard_tokens: int,
    dtype: np.dtype,
) -> tuple[dict[str, Any], int]:
    """Write a shard that starts with `block`; returns its row of the table and the bytes of text in it."""
    name = f"shard-{number:05d}.tar"
    partial = folder / f"{name}.partial"
    entries: list[dict[str, Any]] = []
    whole = hashlib.sha256()
    offset = tokens = text_bytes = 0
    with partial.open("wb") as file:
        while block is not None:
            data = _block_members(first_block + len(entries), block, dtype)
            file.write(data)
            whole.update(data)
            entries.append(
                {
                    "offset": offset,
                    "size": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "documents": len(block),
                    "tokens": sum(len(document.tokens) for document in block),
                    "lengths": [len(document.tokens) for document in block],
                }
            )
            offset += len(data)
            tokens += entries[-1]["tokens"]
            text_bytes += sum(document.bytes for document in block)
            block = next(following, None) if tokens < shard_tokens else None
        end = bytes(-(offset + 1024) % _TAR_RECORD + 1024)
        file.write(end)
        whole.update(end)
    index = json.dumps({"format": FORMAT, "shard": name, "blocks": entries}).encode()
    publish(folder / name.replace(".tar", ".idx"), index)
    os.replace(partial, folder / name)
    row = {
        "name": name,
        "bytes": offset + len(end),
        "sha256": whole.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "documents": sum(entry["documents"] for entry in entries),
        "tokens": tokens,
        "blocks": len(entries),
    }
    return row, text_bytes


def _block_members(number: int, block: list[Document], dtype: np.dtype) -> bytes:
    """The members of one block as they stand in a tar: headers and padded contents, without the end of the archive."""
    stream = io.BytesIO()
    with TarWriter(stream, encoder=False, mtime=0) as tar:
        tar.write(
            {
                "__key__": f"{number:06d}",
                "lengths.npy": _npy(np.array([len(document.tokens) for document in block], dtype=np.uint32)),
                "meta.json": json.dumps(
                    {"ids": [document.id for document in block], "sources": [document.source for document in block]}
                ).encode(),
                "tokens.npy": _npy(np.concatenate([document.tokens for document in block]).astype(dtype)),
            }
        )
        size = tar.tarstream.offset
    return stream.getvalue()[:size]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def publish(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent or whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)

"""Tokenised documents to token shards: WebDataset tars, an index beside each, a table and a manifest. The writer.

Knows nothing of text, tokenizers or the order of training. `reader.py` is the other half of the format:

    shard-00000.tar   blocks of about 256 documents of one source; block 000123 is the members
                      000123.lengths.npy  uint32, tokens of each document
                      000123.meta.json    {"ids": [...], "sources": [...], "urls": [...]}
                      000123.tokens.npy   1-D uint16 or uint32, the documents end to end
    shard-00000.idx   Arrow IPC, a row per block: the file it lies in, its offset, size and sha256, where in it the bare
                      tokens begin, and the lengths of its documents; so that an order can be planned without reading
                      tokens, and tokens be read without reading anything else
    shards.parquet    a row per shard
    manifest.json     the header, with the sources and how many blocks each has; written last, so a folder with a
                      manifest is complete

Equal documents give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from webdataset import TarWriter

FORMAT = 1

_TAR_RECORD = 10_240  # a tar ends in zeros up to a whole record (POSIX pax: 20 blocks of 512 bytes)
_TABLE_GROUP = 8192  # shards: what a reader of the table must hold of it to know one row


@dataclass(frozen=True)
class Document:
    """One tokenised document: BOS, pieces, EOS."""

    id: str
    source: str
    tokens: np.ndarray  # 1-D, integer
    bytes: int  # UTF-8 bytes of the text the tokens encode
    url: str = ""


@dataclass(frozen=True)
class BlockEntry:
    """Where a block lies and what it holds, as an index records it.

    file       name of a tar beside the index, or the URL or path of one elsewhere
    tokens_at  offset of the bare tokens within the block; -1 where it holds text
    key        `order_key` of the first document
    lengths    uint32, tokens of each document
    ids        of the documents, where the block is not in their order and they must be looked through
    """

    file: str
    offset: int
    size: int
    sha256: str
    tokens_at: int
    key: int
    lengths: np.ndarray
    ids: list[str] | None = None


def order_key(document: str) -> int:
    """64 bits of an id, by which the documents of a source are put in an order that knows nothing of their content."""
    return int.from_bytes(hashlib.sha256(f"order {document}".encode()).digest()[:8], "big")


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
    decontamination: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write documents, in the order given, as token shards into a folder without a manifest; returns the manifest.

    The documents of a source must follow each other. A block ends with its source; a shard ends with the first block
    that brings it to `shard_tokens` tokens. Left-overs of an interrupted run are removed first. `config`, `lineage`
    (sha256 of what the documents were made from) and `decontamination` (its certificate of what was kept out) are
    recorded as they are; without a certificate the manifest has no such key, so that what was made before the key was
    known is made again with the same hash.
    """
    folder = Path(folder)
    clear(folder)
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    sources = Sources()
    blocks = sources.counted(_blocks(documents, block_documents))
    rows: list[dict[str, Any]] = []
    first_block = 0
    for block in blocks:
        row = _write_shard(folder, len(rows), first_block, block, blocks, shard_tokens, dtype)
        rows.append(row)
        first_block += row["blocks"]
    header = {
        "tokens": dtype.name,
        "tokenizer_sha256": tokenizer_sha256,
        "vocab_size": vocab_size,
        "config": config,
        "lineage": lineage,
        **({} if decontamination is None else {"decontamination": decontamination}),
    }
    return write_manifest(folder, header, rows, sources)


class Sources:
    """What each source has contributed, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.text_bytes = 0
        self._last_key = -1

    def counted(self, blocks: Iterable[list[Document]]) -> Iterator[list[Document]]:
        """The same blocks. Raises ValueError where a source comes again after another one."""
        for block in blocks:
            self._add(block)
            yield block

    def _add(self, block: list[Document]) -> None:
        name = block[0].source
        if not self.rows or self.rows[-1]["name"] != name:
            if name in {row["name"] for row in self.rows}:
                raise ValueError(f"documents of source {name!r} do not follow each other")
            self.rows.append({"name": name, "documents": 0, "tokens": 0, "blocks": 0, "sorted": True})
            self._last_key = -1
        row = self.rows[-1]
        row["documents"] += len(block)
        row["tokens"] += sum(len(document.tokens) for document in block)
        row["blocks"] += 1
        for document in block:
            key = order_key(document.id)
            row["sorted"] &= key >= self._last_key
            self._last_key = key
        self.text_bytes += sum(document.bytes for document in block)


def clear(folder: Path) -> None:
    """Make the folder, and remove what an interrupted run left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("shard-*.tar", "shard-*.idx", "*.partial"):
        for left_over in folder.glob(pattern):
            left_over.unlink()


def write_manifest(
    folder: Path, header: dict[str, Any], rows: list[dict[str, Any]], sources: Sources
) -> dict[str, Any]:
    """Write the table of shards and then the manifest, which is returned."""
    table = pa.Table.from_pylist(rows, schema=_SHARDS)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, row_group_size=_TABLE_GROUP)
    publish(folder / "shards.parquet", buffer.getvalue())
    manifest = {
        "format": FORMAT,
        **header,
        "totals": {
            "shards": len(rows),
            "blocks": sum(row["blocks"] for row in rows),
            "documents": sum(row["documents"] for row in rows),
            "tokens": sum(row["tokens"] for row in rows),
            "text_bytes": sources.text_bytes,
        },
        "sources": sources.rows,
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

_INDEX = pa.schema(
    [
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),
        ("tokens_at", pa.int64()),
        ("key", pa.uint64()),
        ("lengths", pa.list_(pa.uint32())),
        ("ids", pa.list_(pa.string())),
    ]
)


def dump_index(entries: list[BlockEntry]) -> bytes:
    """The bytes of an index."""
    columns = {
        "file": [entry.file for entry in entries],
        "offset": [entry.offset for entry in entries],
        "size": [entry.size for entry in entries],
        "sha256": [bytes.fromhex(entry.sha256) for entry in entries],
        "tokens_at": [entry.tokens_at for entry in entries],
        "key": [entry.key for entry in entries],
        "lengths": [entry.lengths for entry in entries],
        "ids": [entry.ids for entry in entries],
    }
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _INDEX) as file:
        file.write_table(pa.table(columns, schema=_INDEX))
    return sink.getvalue()


def index_name(shard: str) -> str:
    """The index beside a shard."""
    return shard.removesuffix(".tar") + ".idx"


def _blocks(documents: Iterable[Document], block_documents: int) -> Iterator[list[Document]]:
    for _source, own in groupby(documents, key=lambda document: document.source):
        while block := list(islice(own, block_documents)):
            yield block


def _write_shard(
    folder: Path,
    number: int,
    first_block: int,
    block: list[Document] | None,
    following: Iterator[list[Document]],
    shard_tokens: int,
    dtype: np.dtype,
) -> dict[str, Any]:
    """Write a shard that starts with `block`; returns its row of the table."""
    name = f"shard-{number:05d}.tar"
    partial = folder / f"{name}.partial"
    entries: list[BlockEntry] = []
    whole = hashlib.sha256()
    offset = tokens = 0
    with partial.open("wb") as file:
        while block is not None:
            data, tokens_at = _block_members(first_block + len(entries), block, dtype)
            file.write(data)
            whole.update(data)
            entries.append(
                BlockEntry(
                    file=name,
                    offset=offset,
                    size=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                    tokens_at=tokens_at,
                    key=order_key(block[0].id),
                    lengths=np.array([len(document.tokens) for document in block], dtype=np.uint32),
                )
            )
            offset += len(data)
            tokens += int(entries[-1].lengths.sum(dtype=np.int64))
            block = next(following, None) if tokens < shard_tokens else None
        end = bytes(-(offset + 1024) % _TAR_RECORD + 1024)
        file.write(end)
        whole.update(end)
    index = dump_index(entries)
    publish(folder / index_name(name), index)
    os.replace(partial, folder / name)
    return {
        "name": name,
        "bytes": offset + len(end),
        "sha256": whole.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "documents": sum(len(entry.lengths) for entry in entries),
        "tokens": tokens,
        "blocks": len(entries),
    }


def _block_members(number: int, block: list[Document], dtype: np.dtype) -> tuple[bytes, int]:
    """The members of one block as they stand in a tar, headers and padded contents without the end of the archive, and
    where in them the bare tokens begin."""
    stream = io.BytesIO()
    meta = {
        "ids": [document.id for document in block],
        "sources": [document.source for document in block],
        "urls": [document.url for document in block],
    }
    tokens = _npy(np.concatenate([document.tokens for document in block]).astype(dtype))
    with TarWriter(stream, encoder=False, mtime=0) as tar:
        tar.write(
            {
                "__key__": f"{number:06d}",
                "lengths.npy": _npy(np.array([len(document.tokens) for document in block], dtype=np.uint32)),
                "meta.json": json.dumps(meta).encode(),
                "tokens.npy": tokens,
            }
        )
        size = tar.tarstream.offset
    data = stream.getvalue()[:size]
    tokens_member = size - (-(-len(tokens) // 512) * 512)  # the last member; contents are padded to whole tar blocks
    tokens_at = tokens_member + len(tokens) - sum(len(document.tokens) for document in block) * dtype.itemsize
    return data, tokens_at


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def publish(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent or whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)

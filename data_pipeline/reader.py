"""Token shards back to documents: opened, verified, read block by block. The reader of what `shards.py` writes.

Knows nothing of packing, order or batches. Every byte is checked against the manifest before it is used: sizes when a
folder is opened, checksums when a block is read. Paths are anything fsspec opens.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from webdataset.tariterators import group_by_keys, tar_file_expander

from conf.exits import ConfigError, DataError
from data_pipeline.shards import FORMAT

if TYPE_CHECKING:
    from data_pipeline.tokenizer import Tokenizer

_REMEDY = "copy the shards again from where they were made, or remove the folder and rerun `gemcutter tokenize`"


@dataclass(frozen=True)
class Block:
    """The documents of one block."""

    lengths: np.ndarray  # uint32, tokens per document
    tokens: np.ndarray  # uint16 or uint32, the documents end to end
    ids: list[str]
    sources: list[str]

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, tokens) of each document."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        for name, length, end in zip(self.ids, self.lengths, ends, strict=True):
            yield name, self.tokens[end - length : end]


@dataclass(frozen=True)
class Shards:
    """A folder of token shards. Blocks are numbered through all shards."""

    manifest: str  # path
    sha256: str  # of the manifest, which through its hashes stands for every byte of the shards
    tokenizer_sha256: str
    vocab_size: int
    documents: int
    tokens: int
    text_bytes: int  # UTF-8 bytes of the text that the tokens encode
    num_blocks: int
    _fs: fsspec.AbstractFileSystem
    _folder: str
    _table: list[dict[str, Any]]  # rows of shards.parquet
    _ends: np.ndarray  # number of blocks up to and with each shard

    @classmethod
    def open(cls, manifest: str) -> Shards:
        """Open by the path of the manifest.

        Raises DataError where a file is missing, broken, written by a newer version, or not of its recorded size.
        """
        fs, path = fsspec.core.url_to_fs(str(manifest))
        folder = fs._parent(path)
        try:
            data = fs.cat_file(path)
        except OSError as error:
            raise DataError(
                f"there are no token shards at {manifest} ({error.strerror or 'not found'}): run `gemcutter tokenize` "
                "first, or set data.manifest (data.held_out for held-out shards; null for none)"
            ) from error
        try:
            header = json.loads(data)
            version = header["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{manifest} is not a manifest of token shards ({error}): {_REMEDY}") from error
        if version > FORMAT:
            raise DataError(
                f"{manifest} has format {version}, this version reads up to {FORMAT}: upgrade gemcutter, or rerun "
                "`gemcutter tokenize` with this version"
            )
        listed = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in fs.ls(folder, detail=True)}
        name = header["shards"]["name"]
        if name not in listed:
            raise DataError(f"{name} is missing beside {manifest}: {_REMEDY}")
        table_bytes = fs.cat_file(f"{folder}/{name}")
        _verify(table_bytes, header["shards"]["sha256"], f"{folder}/{name}")
        table = pq.read_table(io.BytesIO(table_bytes)).to_pylist()
        for row in table:
            for file in (row["name"], row["name"].replace(".tar", ".idx")):
                if file not in listed:
                    raise DataError(f"{file} is missing in {folder}: {_REMEDY}")
            if listed[row["name"]] != row["bytes"]:
                raise DataError(
                    f"{row['name']} in {folder} has {listed[row['name']]:,} bytes, but the manifest says "
                    f"{row['bytes']:,} (truncated or overwritten): {_REMEDY}"
                )
        return cls(
            manifest=str(manifest),
            sha256=hashlib.sha256(data).hexdigest(),
            tokenizer_sha256=header["tokenizer_sha256"],
            vocab_size=header["vocab_size"],
            documents=header["totals"]["documents"],
            tokens=header["totals"]["tokens"],
            text_bytes=header["totals"]["text_bytes"],
            num_blocks=header["totals"]["blocks"],
            _fs=fs,
            _folder=folder,
            _table=table,
            _ends=np.cumsum([row["blocks"] for row in table], dtype=np.int64),
        )

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ConfigError unless the shards were made with this tokenizer."""
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise ConfigError(
                f"the tokenizer has sha256 {tokenizer.sha256} ({tokenizer.vocab_size} pieces), but the shards of "
                f"{self.manifest} were made with {self.tokenizer_sha256} ({self.vocab_size} pieces): set "
                "tokenizer.model to the model they were made with, or rerun `gemcutter tokenize` into another "
                "tokenize.output"
            )

    def lengths(self, first: int, stop: int) -> np.ndarray:
        """Tokens of each document of the blocks [first, stop), from the indexes alone."""
        return np.array(
            [length for _, entry in self._entries(first, stop) for length in entry["lengths"]], dtype=np.int64
        )

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[Block]:
        """The blocks [first, stop), each verified; DataError names the shard and block that are not as recorded."""
        for name, entry in self._entries(first, self.num_blocks if stop is None else stop):
            start, end = entry["offset"], entry["offset"] + entry["size"]
            data = self._read(name, start, end)
            _verify(
                data, entry["sha256"], f"{self._folder}/{name}, bytes {start:,} to {end:,} (block {entry['block']})"
            )
            yield _decode(name, data)

    def beside(self, name: str) -> bytes | None:
        """The bytes of another file of the folder, None where there is none."""
        return self._read(name) if self._fs.exists(f"{self._folder}/{name}") else None

    def _entries(self, first: int, stop: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """(shard name, index entry) of the blocks [first, stop)."""
        shard = int(np.searchsorted(self._ends, first, side="right"))
        while first < stop:
            row = self._table[shard]
            name = row["name"].replace(".tar", ".idx")
            data = self._read(name)
            _verify(data, row["index_sha256"], f"{self._folder}/{name}")
            entries = json.loads(data)["blocks"]
            shard_first = int(self._ends[shard]) - row["blocks"]
            for number in range(first, min(stop, shard_first + row["blocks"])):
                yield row["name"], entries[number - shard_first] | {"block": number}
            first = shard_first + row["blocks"]
            shard += 1

    def _read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return self._fs.cat_file(f"{self._folder}/{name}", start, end)
        except OSError as error:
            raise DataError(
                f"{name} in {self._folder} cannot be read ({error.strerror or error}): {_REMEDY}"
            ) from error


def _verify(data: bytes, sha256: str, place: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(
            f"{place}: the bytes are not those of the manifest (sha256 {found}, expected {sha256}): {_REMEDY}"
        )


def _decode(name: str, data: bytes) -> Block:
    (members,) = group_by_keys(tar_file_expander([{"url": name, "stream": io.BytesIO(data)}]))
    meta = json.loads(members["meta.json"])
    return Block(
        lengths=np.load(io.BytesIO(members["lengths.npy"]), allow_pickle=False),
        tokens=np.load(io.BytesIO(members["tokens.npy"]), allow_pickle=False),
        ids=meta["ids"],
        sources=meta["sources"],
    )

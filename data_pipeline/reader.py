"""Token shards back to documents: opened, verified, read block by block. The reader of what `shards.py` writes.

Knows nothing of packing, order or batches. Every byte is held against a checksum before it is used: the table against
the manifest, an index against the table, a block against its index. Only what is asked for is read, so that a manifest
of a million shards opens at once.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from webdataset.tariterators import group_by_keys, tar_file_expander

from conf.exits import ConfigError, DataError
from data_pipeline.decontaminate import certificate
from data_pipeline.disk_cache import DiskCache
from data_pipeline.files import Files, Range, redacted
from data_pipeline.samples import Sample, read_samples
from data_pipeline.shards import FORMAT, BlockEntry, index_name
from data_pipeline.tokenizer import Tokenizer

_REMEDY = "copy the shards again from where they were made, or remove the folder and rerun `gemcutter tokenize`"
_LISTED = 10_000  # shards whose presence and sizes are checked when a folder is opened: ten requests of an object store
_INDEXES = 32  # indexes kept in memory


@dataclass(frozen=True)
class Source:
    """A source of documents: a run of consecutive blocks."""

    name: str
    first_block: int
    num_blocks: int
    documents: int
    tokens: int
    sorted: bool  # whether its documents stand in the order of `shards.order_key`


@dataclass(frozen=True)
class Block:
    """The documents of one block."""

    number: int
    lengths: np.ndarray  # uint32, tokens per document
    tokens: np.ndarray  # uint16 or uint32, the documents end to end
    ids: list[str]
    urls: list[str]
    source: str

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(id, tokens) of each document."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        for name, length, end in zip(self.ids, self.lengths, ends, strict=True):
            yield name, self.tokens[end - length : end]


@dataclass
class Shards:
    """A folder of token shards. Blocks are numbered through all shards."""

    manifest: str  # path or URL, without what is secret in it
    sha256: str  # of the manifest, which through its hashes stands for every byte of the shards
    tokenizer_sha256: str
    vocab_size: int
    documents: int
    tokens: int
    text_bytes: int  # UTF-8 bytes of the text that the tokens encode
    num_blocks: int
    dtype: np.dtype  # of tokens
    sources: list[Source]
    decontamination: dict[str, Any] | None  # the certificate of what was kept out of the texts
    files: Files
    tokenizer: Tokenizer | None  # what texts become tokens with, where blocks hold texts
    skippable: bool
    _text_fields: dict[str, str]  # of each source of texts
    _table: _Table
    _indexes: OrderedDict[int, _Index] = field(default_factory=OrderedDict)  # by shard, the latest used last

    @classmethod
    def open(
        cls,
        manifest: str,
        cache: DiskCache | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        skippable: bool = False,
    ) -> Shards:
        """Open by the path or URL of the manifest; `cache` keeps what is read of remote shards on this host's disk.

        Shards that are an index of texts need the tokenizer to be read, but not to be planned or searched. Of shards
        that a run trains on, a broken block is `skippable`: an error says so.
        Raises DataError where a file is missing, broken, written by a newer version, or not of its recorded size, or
        where the certificate of what was kept out was changed.
        """
        files, name = Files.open(str(manifest), cache)
        data, shown = files.find(name), redacted(str(manifest))
        if data is None:
            raise DataError(
                f"there are no token shards at {shown} (not found): run `gemcutter tokenize` first, "
                "or set data.manifest (data.held_out for held-out shards; null for none)"
            )
        header = _header(data, shown)
        certificate.check(header.get("decontamination"), shown)
        try:
            table = _Table.read(files, header["shards"]["name"], header["shards"]["sha256"])
            _check_presence(files, table)
            return cls(
                manifest=shown,
                sha256=hashlib.sha256(data).hexdigest(),
                tokenizer_sha256=header["tokenizer_sha256"],
                vocab_size=header["vocab_size"],
                documents=header["totals"]["documents"],
                tokens=header["totals"]["tokens"],
                text_bytes=header["totals"]["text_bytes"],
                num_blocks=header["totals"]["blocks"],
                dtype=np.dtype(header["tokens"]),
                sources=_sources(header["sources"]),
                decontamination=header.get("decontamination"),
                files=files,
                tokenizer=tokenizer,
                skippable=skippable,
                _text_fields=header.get("text_fields", {}),
                _table=table,
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{shown} lacks {error}: it was made by another version; rerun `gemcutter tokenize`"
            ) from error

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ConfigError unless the shards were made with this tokenizer."""
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise ConfigError(
                f"the tokenizer has sha256 {tokenizer.sha256} ({tokenizer.vocab_size} pieces), but the shards of "
                f"{self.manifest} were made with {self.tokenizer_sha256} ({self.vocab_size} pieces): set "
                "tokenizer.model to the model they were made with, or rerun `gemcutter tokenize` into another "
                "tokenize.output"
            )

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: not what was read."""
        return self.__dict__ | {"_indexes": OrderedDict()}

    def lengths(self, first: int, stop: int) -> np.ndarray:
        """Tokens of each document of the blocks [first, stop), int64, from the indexes alone."""
        parts = [self._index(shard).lengths(start, end) for shard, start, end in self._table.runs(first, stop)]
        return np.concatenate(parts).astype(np.int64)

    def documents_per_block(self, first: int, stop: int) -> np.ndarray:
        """Documents of each of the blocks [first, stop), int64."""
        parts = [self._index(shard).counts(start, end) for shard, start, end in self._table.runs(first, stop)]
        return np.concatenate(parts)

    def entry(self, block: int) -> BlockEntry:
        """Where a block lies and what it holds."""
        shard, within = self._table.find(block)
        return self._index(shard).entry(within)

    def tokens_of(self, blocks: Sequence[int]) -> list[memoryview]:
        """The tokens of each block, its documents end to end; all are fetched at once."""
        entries = [self.entry(block) for block in blocks]
        read = zip(blocks, entries, self._fetch(blocks, entries), strict=True)
        return [self._tokens(block, entry, data).data for block, entry, data in read]

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[Block]:
        """The blocks [first, stop) with all that is known of their documents, each read anew and verified."""
        for number in range(first, self.num_blocks if stop is None else stop):
            entry = self.entry(number)
            (data,) = self._fetch([number], [entry])
            ids, urls = self._meta(number, entry, data)
            source = self.source_of(number).name
            yield Block(number, entry.lengths, self._tokens(number, entry, data), ids, urls, source)

    def meta(self, block: int) -> tuple[list[str], list[str]]:
        """Ids and URLs of the documents of a block."""
        entry = self.entry(block)
        return self._meta(block, entry, self._fetch([block], [entry])[0])

    def ids(self, block: int) -> list[str]:
        """Ids of the documents of a block."""
        return self.entry(block).ids or self.meta(block)[0]

    def source_of(self, block: int) -> Source:
        """The source whose documents a block holds."""
        ends = [source.first_block + source.num_blocks for source in self.sources]
        return self.sources[int(np.searchsorted(ends, block, side="right"))]

    def shard_of(self, block: int) -> tuple[str, int]:
        """Name of the shard that holds a block, and the block's number within it."""
        shard, within = self._table.find(block)
        return self._table.row(shard)["name"], within

    def block_name(self, number: int, entry: BlockEntry) -> str:
        """What people call a block: file and number, and which shards, since others of a mixture may be named alike."""
        return f"{entry.file.rsplit('/', 1)[-1]}:{number}@{self.sha256[:8]}"

    def beside(self, name: str) -> bytes | None:
        """The bytes of another file of the folder, None where there is none."""
        return self.files.find(name)

    def _fetch(self, blocks: Sequence[int], entries: Sequence[BlockEntry]) -> list[bytes]:
        ranges = []
        for number, entry in zip(blocks, entries, strict=True):
            remedy = _REMEDY
            if self.skippable:
                name = self.block_name(number, entry)
                remedy += f"; or train on without its documents: `gemcutter skip RUN --block {name}`"
            end = entry.offset + entry.size
            ranges.append(Range(entry.file, entry.offset, end, entry.sha256, f"block {number}", remedy))
        return self.files.read_ranges(ranges)

    def _meta(self, number: int, entry: BlockEntry, data: bytes) -> tuple[list[str], list[str]]:
        if entry.tokens_at < 0:
            samples = self._samples(number, entry, data)
            return [sample.id for sample in samples], [sample.url for sample in samples]
        (members,) = group_by_keys(tar_file_expander([{"url": entry.file, "stream": io.BytesIO(data)}]))
        meta = json.loads(members["meta.json"])
        return meta["ids"], meta["urls"]

    def _samples(self, number: int, entry: BlockEntry, data: bytes) -> list[Sample]:
        field = self._text_fields[self.source_of(number).name]
        return list(read_samples(io.BytesIO(data), redacted(entry.file), field, whole=False))

    def _tokens(self, number: int, entry: BlockEntry, data: bytes) -> np.ndarray:
        if entry.tokens_at < 0:
            return self._encoded(number, entry, data)
        return np.frombuffer(data, self.dtype, int(entry.lengths.sum(dtype=np.int64)), entry.tokens_at)

    def _encoded(self, number: int, entry: BlockEntry, data: bytes) -> np.ndarray:
        """The tokens of a block of texts."""
        if self.tokenizer is None:
            raise ValueError(f"{self.manifest} indexes texts, which are read with a tokenizer")
        tokens = self.tokenizer.encode_documents([sample.text for sample in self._samples(number, entry, data)])
        if [len(own) for own in tokens] != entry.lengths.tolist():
            raise DataError(
                f"the texts of {redacted(entry.file)}, block {number}, have other numbers of tokens than the index "
                "says, though texts and tokenizer are the same: another version of sentencepiece made the index; make "
                "it again"
            )
        return np.concatenate(tokens).astype(self.dtype)

    def _index(self, shard: int) -> _Index:
        index = self._indexes.get(shard)
        if index is None:
            row = self._table.row(shard)
            index = _Index(self.files.read(index_name(row["name"]), row["index_sha256"], _REMEDY))
            self._indexes[shard] = index
            if len(self._indexes) > _INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(shard)
        return index


class _Table:
    """shards.parquet: how many blocks each shard has in memory, the rest read where it is asked for."""

    def __init__(self, data: bytes | Path) -> None:
        self._data = data
        with self._open() as file:
            chunks = file.read(columns=["blocks"])["blocks"].chunks
        counts = np.concatenate([np.empty(0, np.int64), *map(np.from_dlpack, chunks)])  # to_numpy would load pandas
        self.ends = np.cumsum(counts, dtype=np.int64)  # number of blocks up to and with each shard
        self._near: tuple[int, dict[str, pa.ChunkedArray]] | None = None  # the row group that was read last

    @classmethod
    def read(cls, files: Files, name: str, sha256: str) -> _Table:
        data = files.path(name, sha256) or files.find(name, sha256, _REMEDY)
        if data is None:
            raise DataError(f"{name} is missing beside the manifest in {redacted(files.url)}: {_REMEDY}")
        return cls(data)

    def __len__(self) -> int:
        return len(self.ends)

    def __getstate__(self) -> bytes | Path:
        return self._data

    def __setstate__(self, data: bytes | Path) -> None:
        self.__init__(data)  # type: ignore[misc]  # a reader of Parquet does not travel between processes

    def row(self, shard: int) -> dict[str, Any]:
        """What the table says of a shard."""
        group, within = divmod(shard, self._file.metadata.row_group(0).num_rows)
        return {name: column[within].as_py() for name, column in self._group(group).items()}

    def find(self, block: int) -> tuple[int, int]:
        """The shard of a block, and the block's number within it."""
        shard = int(np.searchsorted(self.ends, block, side="right"))
        return shard, block - (int(self.ends[shard - 1]) if shard else 0)

    def runs(self, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first block within it, the one after the last) of the blocks [first, stop)."""
        while first < stop:
            shard, within = self.find(first)
            end = min(int(self.ends[shard]), stop)
            yield shard, within, within + end - first
            first = end

    @functools.cached_property
    def _file(self) -> pq.ParquetFile:
        return self._open()

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._data if isinstance(self._data, Path) else pa.BufferReader(self._data))

    def _group(self, number: int) -> dict[str, pa.ChunkedArray]:
        if self._near is None or self._near[0] != number:
            table = self._file.read_row_group(number, columns=["name", "bytes", "index_sha256"])
            self._near = number, dict(zip(table.column_names, table.columns, strict=True))
        return self._near[1]


class _Index:
    """The blocks of a shard."""

    def __init__(self, data: bytes) -> None:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()
        self._columns = {name: table[name].chunk(0) for name in table.column_names}
        lengths = self._columns["lengths"]
        self._lengths, self._offsets = np.from_dlpack(lengths.values), np.from_dlpack(lengths.offsets)

    def lengths(self, first: int, stop: int) -> np.ndarray:
        return self._lengths[self._offsets[first] : self._offsets[stop]]

    def counts(self, first: int, stop: int) -> np.ndarray:
        return np.diff(self._offsets[first : stop + 1]).astype(np.int64)

    def entry(self, number: int) -> BlockEntry:
        values = {name: column[number].as_py() for name, column in self._columns.items() if name != "lengths"}
        values["sha256"] = values["sha256"].hex()
        return BlockEntry(**values, lengths=self.lengths(number, number + 1))


def _header(data: bytes, manifest: str) -> dict[str, Any]:
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
    return header


def _sources(rows: list[dict[str, Any]]) -> list[Source]:
    sources, first = [], 0
    for row in rows:
        sources.append(Source(row["name"], first, row["blocks"], row["documents"], row["tokens"], row["sorted"]))
        first += row["blocks"]
    return sources


def _check_presence(files: Files, table: _Table) -> None:
    """Raise DataError where a file is missing or has another size, unless there are too many to list at a start."""
    if len(table) > _LISTED or (listed := files.sizes()) is None:
        return
    for number in range(len(table)):
        row = table.row(number)
        for file in (index_name(row["name"]), row["name"]):
            if file not in listed and (file != row["name"] or row["bytes"]):
                raise DataError(f"{file} is missing in {redacted(files.url)}: {_REMEDY}")
        if row["bytes"] and listed[row["name"]] != row["bytes"]:
            raise DataError(
                f"{row['name']} in {redacted(files.url)} has {listed[row['name']]:,} bytes, but the manifest says "
                f"{row['bytes']:,} (truncated or overwritten): {_REMEDY}"
            )

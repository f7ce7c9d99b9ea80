"""The task that reads: records to text without personal data, and everything that is known of a document alone.

Nothing is decided here that depends on a limit, so other limits need no second reading. What a document leaves behind
for the steps that compare documents (fingerprint, bands, sketch, rank) is written beside its columns.

A task writes parts, so that its memory does not grow with what there is to read:

    documents.parquet   the columns of `columns.READ`, a row a document
    spans.npy           where documents hold items of benchmarks
    and the files of `duplicates`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema import Source
from data_pipeline import signals, sources
from data_pipeline.batched import batched
from data_pipeline.classify.language import UNKNOWN, identify
from data_pipeline.curate import inspectors, spans
from data_pipeline.curate.columns import READ, SCRUBBED
from data_pipeline.curate.inspectors import Inspectors
from data_pipeline.decontaminate.match import match
from data_pipeline.document import Record
from data_pipeline.duplicates import exact, minhash, ranks
from data_pipeline.extract import Apart, Outcome, of_this_process
from data_pipeline.harm import prohibited, toxicity, words
from data_pipeline.private.found import KINDS
from data_pipeline.private.scrub import scrub
from data_pipeline.signals import thresholds
from data_pipeline.signals.tokens import Tokens

PART_BYTES = 64 * 2**20  # of text: what is in memory for it takes about as much again
PART_DOCUMENTS = 1 << 16
BATCH_CHARACTERS = 1 << 20  # tokenised together
CHUNK_RECORDS, CHUNK_BYTES = 256, 1 << 20  # handed to extraction together
DOCUMENTS = "documents.parquet"
ROW_GROUP_BYTES = 8 * 2**20
SHINGLING = minhash.Shingling()


@dataclass(frozen=True)
class How:
    """What all tasks of a curation do alike.

    stop_words   of each language that has a list
    """

    extract_seconds: float
    extract_memory: int
    largest_bytes: int
    part_bytes: int
    files: inspectors.Files
    stop_words: Mapping[str, tuple[str, ...]] = field(hash=False)


@dataclass(frozen=True)
class Read:
    """A piece of a source; `number` is the upper half of its documents' numbers, `rank` the place of the source."""

    number: int
    source: Source
    rank: int
    piece: sources.Piece
    how: How


@dataclass(frozen=True)
class Document:
    """A record as text. `reason` says why it is no document ("" where it is); then nothing is measured.

    record   what it states of itself, without personal data
    size     UTF-8 bytes of the text before scrubbing: what `limit_bytes` counts
    """

    record: Record
    text: str
    reason: str = ""
    size: int = 0
    extractor: str = ""
    language: str = UNKNOWN
    confidence: float = 0.0
    scrubbed: Mapping[str, int] = field(default_factory=dict)


def read(task: Read, folder: Path) -> dict[str, Any]:
    """Write the parts. Returns of each its first row, documents, and UTF-8 bytes of text before and after scrubbing."""
    loaded = inspectors.load(task.how.files)
    batch_characters = min(BATCH_CHARACTERS, task.how.part_bytes)
    parts: list[dict[str, Any]] = []
    part: _Part | None = None
    documents = _documents(task, loaded)
    for batch in batched(documents, lambda document: len(document.text), batch_characters, PART_DOCUMENTS):
        if part is None:
            first = parts[-1]["first"] + parts[-1]["documents"] if parts else 0
            part = _Part(folder / f"{len(parts):05d}", task, first)
        part.add(batch, loaded)
        if part.bytes >= min(PART_BYTES, task.how.part_bytes) or part.documents >= PART_DOCUMENTS:
            parts.append(part.close())
            part = None
    if part is not None:
        parts.append(part.close())
    return {"parts": parts}


def warm_up() -> None:
    """Have the compiled loops compiled, so that not every worker does."""
    tokens = Tokens.of(["A text, to compile with.", ""])
    columns = signals.measure(tokens, ["en", "en"])
    thresholds.quality(columns, ["en", "en"])
    minhash.measure(tokens, SHINGLING)


# ---- records to documents --------------------------------------------------------------------------------------------


def _documents(task: Read, loaded: Inspectors) -> Iterator[Document]:
    """The documents of the piece, until `limit_bytes` of text came."""
    apart = of_this_process(task.how.extract_seconds, task.how.extract_memory)
    limit, taken = task.source.limit_bytes, 0
    for chunk in chunks(sources.records(task.piece, task.source, task.how.largest_bytes)):
        for record, outcome in zip(chunk, _outcomes(apart, chunk), strict=True):
            document = _document(record, outcome, loaded)
            if document is None:
                continue
            yield document
            taken += document.size
            if limit is not None and taken >= limit:
                return


def _outcomes(apart: Apart, chunk: Sequence[Record]) -> list[Outcome]:
    """What became of each record; those that their source rejected are not read."""
    read = iter(apart.read_all([record for record in chunk if not record.reason]))
    return [Outcome(None, record.reason) if record.reason else next(read) for record in chunk]


def _document(record: Record, outcome: Outcome, loaded: Inspectors) -> Document | None:
    """A document; None where the record holds none at all."""
    if outcome.extracted is None:
        return _rejected(record, outcome.reason, loaded) if outcome.reason else None
    stated = _stated(record, loaded.key)
    text, extractor = outcome.extracted
    size = len(text.encode())
    language, confidence = identify(text)
    if loaded.is_prohibited(record.url, text, language):
        return Document(Record("", "text", ""), "", prohibited.REASON)
    if not text:
        return Document(stated, "", "empty", size, extractor)
    scrubbed = scrub(text, language, loaded.key)
    reason = loaded.blocked.reason(record.url, text)
    return Document(stated, scrubbed.text, reason, size, extractor, language, confidence, scrubbed.counts)


def _rejected(record: Record, reason: str, loaded: Inspectors) -> Document:
    """A record that is no document: where it stood is enough to find it, and what it holds cannot be read well enough
    to be sure that nothing in it must not be stored."""
    if loaded.is_prohibited(record.url, "", UNKNOWN):
        return Document(Record("", "text", ""), "", prohibited.REASON)
    return Document(_stated(record, loaded.key), "", reason)


def _stated(record: Record, key: bytes) -> Record:
    """The record without its content and without personal data or secrets in what it states about itself.

    A record whose id or url held any is named by its place: placeholders are alike, and would tell nothing apart.
    """
    id_, url = _scrubbed(record.id, record.url, key)
    return replace(
        record,
        content="",
        id=id_ if id_ == record.id else "",
        url=url,
        locator=record.locator if url != record.url else record.url or record.locator,
        source=_scrubbed_again(record.source, key),
        language=_scrubbed_again(record.language, key),
        license=_scrubbed_again(record.license, key),
    )


def _scrubbed(id_: str, url: str, key: bytes) -> tuple[str, str]:
    if not scrub(f"{id_}\n{url}", key=key).items:  # nearly always, and once is half of twice
        return id_, url
    return scrub(id_, key=key).text, scrub(url, key=key).text


@lru_cache(4096)
def _scrubbed_again(text: str, key: bytes) -> str:
    """Of texts that many records state alike."""
    return scrub(text, key=key).text


def chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records as they are handed to extraction."""
    return batched(records, lambda record: len(record.content), CHUNK_BYTES, CHUNK_RECORDS)


# ---- documents to columns --------------------------------------------------------------------------------------------


class _Part:
    """Documents that are written together."""

    def __init__(self, folder: Path, task: Read, first: int) -> None:
        folder.mkdir()
        self.documents = self.bytes = self.extracted_bytes = 0
        self._folder, self._task, self._first = folder, task, first
        self._file = pq.ParquetWriter(folder / DOCUMENTS, READ, compression="zstd", compression_level=1)
        self._tables: list[pa.Table] = []
        self._held = 0
        self._fingerprints: list[Any] = []
        self._measured: list[Any] = []
        self._ranks: list[Any] = []
        self._spans: list[Any] = []

    def add(self, batch: Sequence[Document], loaded: Inspectors) -> None:
        """Measure a batch, and take it in."""
        first = np.uint64((self._task.number << 32) + self._first + self.documents)
        numbers_D = first + np.arange(len(batch), dtype=np.uint64)
        is_text_D = np.array([not document.reason for document in batch], np.bool_)
        texts = [document.text if not document.reason else "" for document in batch]
        languages = [document.language for document in batch]
        tokens = Tokens.of(texts)
        columns = signals.measure(tokens, languages, self._task.how.stop_words)
        model = loaded.quality
        quality_D = model.score(tokens) if model is not None else thresholds.quality(columns, languages)
        table = self._table(batch, columns, quality_D, is_text_D, loaded)
        self._write(table)
        here_D = numbers_D[is_text_D]
        self._fingerprints.append(
            (here_D, exact.fingerprints([text for text, here in zip(texts, is_text_D, strict=True) if here]))
        )
        self._measured.append((numbers_D, minhash.measure(tokens, SHINGLING)))
        lengths_D = np.array([len(text) for text in texts])
        self._ranks.append((here_D, np.nan_to_num(quality_D[is_text_D]), lengths_D[is_text_D]))
        if loaded.index is not None:
            self._spans.append(spans.as_records(numbers_D, match(loaded.index, tokens)))
        self.documents += len(batch)

    def _table(
        self, batch: Sequence[Document], columns: Mapping[str, Any], quality_D: Any, is_text_D: Any, loaded: Inspectors
    ) -> pa.Table:
        records = [document.record for document in batch]
        source, label = self._task.source, sources.label(self._task.source)
        hidden_D = ~is_text_D
        values: dict[str, Any] = {
            "id": [record.id or _name(label, record) for record in records],
            "text": [document.text for document in batch],
            "url": [record.url for record in records],
            # A configured name wins over the source that the record states; the licence that the record states wins
            # over the configured one, which is for those that state none.
            "source": [source.name or record.source or source.kind for record in records],
            "language": [document.language for document in batch],
            "license": [record.license or source.license for record in records],
            "quality": pa.array(quality_D, mask=hidden_D),
            "stated_language": [record.language for record in records],
            "extractor": [document.extractor for document in batch],
            "language_confidence": [document.confidence for document in batch],
            **{name: pa.array(column, mask=hidden_D) for name, column in columns.items()},
            **{
                name: [document.scrubbed.get(kind, 0) for document in batch]
                for name, kind in zip(SCRUBBED, KINDS, strict=True)
            },
            "bad_words": [None if document.reason else _bad_words(document) for document in batch],
            "toxicity": _toxicity(batch, loaded),
            "extracted_bytes": [document.size for document in batch],
            "reason": [document.reason for document in batch],
        }
        return pa.table(
            [
                pa.array(values[one.name], one.type)
                if isinstance(values[one.name], list)
                else values[one.name].cast(one.type)
                for one in READ
            ],
            schema=READ,
        )

    def _write(self, table: pa.Table) -> None:
        size = sum(len(text.encode()) for text in table["text"].to_pylist())
        self.bytes += size
        self.extracted_bytes += int(np.sum(table["extracted_bytes"].to_numpy()))
        self._tables.append(table)
        self._held += size
        if self._held >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._tables:
            self._file.write_table(pa.concat_tables(self._tables).combine_chunks())
        self._tables, self._held = [], 0

    def close(self) -> dict[str, Any]:
        """Write the rest; returns the facts of the part."""
        self._flush()
        self._file.close()
        documents = np.concatenate([numbers for numbers, _ in self._fingerprints])
        exact.write(self._folder, documents, np.concatenate([marks for _, marks in self._fingerprints]))
        minhash.write(self._folder, self._measured)
        _, quality, length = (np.concatenate(one) for one in zip(*self._ranks, strict=True))
        ranks.write(self._folder, documents, quality, length, np.full(len(documents), self._task.rank))
        spans.write(self._folder, self._spans)
        return {
            "first": self._first,
            "documents": self.documents,
            "bytes": self.bytes,
            "extracted_bytes": self.extracted_bytes,
        }


def _name(label: str, record: Record) -> str:
    """A record that states no id is named by its source and a hash of its place."""
    return f"{label}/{hashlib.sha256(record.locator.encode()).hexdigest()[:16]}" if record.locator else ""


def _bad_words(document: Document) -> int | None:
    listed = words.packaged(document.language)
    return None if listed is None else listed.count(document.text)


def _toxicity(batch: Sequence[Document], loaded: Inspectors) -> list[float | None]:
    """The share of each text that is toxic; None where nothing tells."""
    if loaded.toxicity is None:
        return [None] * len(batch)
    places = [[] if document.reason else toxicity.passages(document.text) for document in batch]
    pieces = [
        document.text[one.start : one.end] for document, of_text in zip(batch, places, strict=True) for one in of_text
    ]
    scores = iter(loaded.toxicity.score(Tokens.of(pieces)).tolist())
    return [
        None if document.reason else toxicity.toxic_share(of_text, [next(scores) for _ in of_text])
        for document, of_text in zip(batch, places, strict=True)
    ]

"""Tokenised documents for benchmarks, in a form that belongs to no loader.

Made from the corpus that GEMCUTTER_CORPUS names: every document with a text, tokenised by a SentencePiece model that is
trained on a sample of it, in the order of `shards.order_key` of their ids. Kept under runs/bench, one folder for each
corpus and tokenizer:

    tokens.npy       1-D uint16, the documents end to end; each is BOS, pieces, EOS
    lengths.npy      uint32, tokens of each document
    text_bytes.npy   uint32, UTF-8 bytes of the text of each document
    ids.txt          a line a document
    sources.txt      a line a document: the package it came in
    tokenizer.model
    about.json       what was done; written last, so a folder that has it is complete
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

from data_pipeline.classify.language import identify
from data_pipeline.extract import repair
from data_pipeline.shards import order_key
from data_pipeline.tokenizer import Tokenizer, train

VOCAB_SIZE = 16_384  # fits uint16, as the shards of most small vocabularies do
_SAMPLE_BYTES = 8_000_000  # what the tokenizer is trained on: seconds, and pieces good enough for lengths to be real
_SAMPLE_CHARACTERS = 20_000  # of one document, so that a few long ones do not make up the sample
_AT_ONCE = 4000  # documents tokenised in one call
_CORPUS_CHARACTERS, _DRAWN = 350e6, 3  # so many times what is asked for, as some is too long or not English
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_VERSION = 1  # raise when equal settings give other files


class Text(NamedTuple):
    """One document of the corpus."""

    id: str
    source: str
    text: str
    hint: str  # the language that its path states, or nothing


def documents(runs: Path) -> Path:
    """The folder of documents, made if it is not there yet."""
    corpus = root()
    key = [_VERSION, VOCAB_SIZE, _SAMPLE_BYTES, _SAMPLE_CHARACTERS, _digest(corpus / "manifest.json")]
    folder = runs / f"documents-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    if not (folder / "about.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # left over from a run that was stopped
        folder.mkdir(parents=True)
        _write(corpus, folder)
    return folder


def about(folder: Path) -> dict[str, Any]:
    """What the documents are: their number, tokens and text bytes, and the vocabulary."""
    return json.loads((folder / "about.json").read_text())


def english(characters: int, longest: int) -> list[str]:
    """Repaired English documents of the corpus, so many characters together, in the order of a hash of their ids.

    None is longer than `longest`. Documents with letters of scripts without blanks are left out: many pages of the
    corpus are half translated.
    """
    chosen: list[tuple[int, str]] = []
    share = _DRAWN * characters / _CORPUS_CHARACTERS
    for document in every_text(root()):
        key = order_key(document.id)
        if key < share * 2**64 and len(document.text) <= longest:
            text = repair(document.text)
            if text and identify(text)[0] == "en" and not _UNSPACED.search(text):
                chosen.append((key, text))
    texts = [text for _, text in sorted(chosen)]
    ends = itertools.accumulate(map(len, texts))
    return [text for text, end in zip(texts, ends, strict=True) if end <= characters]


def root() -> Path:
    """The corpus that GEMCUTTER_CORPUS names."""
    name = os.environ.get("GEMCUTTER_CORPUS")
    if not name or not (Path(name) / "manifest.json").exists():
        raise SystemExit(f"GEMCUTTER_CORPUS={name!r} is no corpus: set it to the folder with manifest.json and text/")
    return Path(name)


def _write(corpus: Path, folder: Path) -> None:
    texts = sorted(every_text(corpus), key=lambda text: order_key(text.id))
    model = folder / "tokenizer.model"
    model.write_bytes(train(_sample(texts), VOCAB_SIZE))
    tokenizer = Tokenizer.load(model)
    parts = []
    for first in range(0, len(texts), _AT_ONCE):
        rows = tokenizer.encode_documents([text.text for text in texts[first : first + _AT_ONCE]])
        parts += [row.astype(np.uint16) for row in rows]
    lengths = np.array([len(part) for part in parts], dtype=np.uint32)
    text_bytes = np.array([len(text.text.encode()) for text in texts], dtype=np.uint32)
    np.save(folder / "tokens.npy", np.concatenate(parts))
    np.save(folder / "lengths.npy", lengths)
    np.save(folder / "text_bytes.npy", text_bytes)
    (folder / "ids.txt").write_text("".join(f"{text.id}\n" for text in texts))
    (folder / "sources.txt").write_text("".join(f"{text.source}\n" for text in texts))
    made = {
        "documents": len(texts),
        "tokens": int(lengths.sum(dtype=np.int64)),
        "text_bytes": int(text_bytes.sum(dtype=np.int64)),
        "median_length": int(np.median(lengths)),
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
    }
    (folder / "about.json").write_text(json.dumps(made, indent=2) + "\n")


def of_source(source: str) -> Iterator[Text]:
    """The documents of one package that have a text."""
    yield from every_text(root(), f"{source}.jsonl.zst")


def every_text(corpus: Path, files: str = "*.jsonl.zst") -> Iterator[Text]:
    """Every text of the corpus that is not blank."""
    for file in sorted((corpus / "text").glob(files)):
        with file.open("rb") as packed:
            stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed), 2**20)
            for line in stream:  # bytes are split at \n alone; texts hold other line breaks
                fields = json.loads(line)
                if fields["text"].strip():
                    yield Text(fields["id"], fields["source"], fields["text"], fields["lang_hint"] or "")


def _sample(texts: list[Text]) -> Iterator[str]:
    """The first documents; their order is that of a hash, so they are a random sample."""
    room = _SAMPLE_BYTES
    for text in texts:
        part = text.text[:_SAMPLE_CHARACTERS]
        room -= len(part.encode())
        if room < 0:
            return
        yield part


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

"""The job `tokenize` over WebDataset tars that exist: an index beside which nothing is written again.

The tars stay where and as they are; texts become tokens when they are read. The index holds, of each block of samples,
where its bytes lie, their checksum, and how many tokens each text has, which is all that an order needs to know.
Blocks are put in the order of a hash, since tars are seldom shuffled; samples of a block stay together.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conf.exits import ConfigError
from conf.schema import Job, Source
from data_pipeline.files import open_file, redacted, split
from data_pipeline.lock import locked
from data_pipeline.samples import Sample, read_samples
from data_pipeline.shards import BlockEntry, Document, Sources, clear, dump_index, order_key, publish, write_manifest
from data_pipeline.tokenize_text import file_sha256, is_held_out, obtain_tokenizer, summary
from data_pipeline.tokenizer import Tokenizer

_INDEX_BLOCKS = 256  # blocks an index file holds


@dataclass(frozen=True)
class _Tar:
    source: Source
    url: str
    bytes: int


def index_webdataset(job: Job) -> dict[str, Any]:
    """Run the job; returns its summary. Does nothing where the index of these tars is already complete.

    Of the blocks of samples a fraction `tokenize.held_out`, chosen by a hash, is indexed apart. Raises DataError where
    a tar cannot be read or is cut short; ConfigError where the output belongs to another configuration.
    """
    output = Path(job.tokenize.output)
    tars = [tar for source in job.tokenize.webdataset for tar in _tars(source)]
    listed = json.dumps([(tar.source.name, tar.url, tar.bytes) for tar in tars])
    lineage = hashlib.sha256(listed.encode()).hexdigest()
    config = {
        "tokenizer.model": file_sha256(job.tokenizer.model),
        "tokenize.held_out": job.tokenize.held_out,
        "tokenize.block_documents": job.tokenize.block_documents,
        "tokenize.webdataset": [asdict(source) for source in job.tokenize.webdataset],
    }
    with locked(output, "tokenize.output"):
        if (output / "manifest.json").exists():
            _check_same(output, config, lineage)
        else:
            if any(output.glob("*.tar")):
                raise ConfigError(f"tokenize.output={output} holds tars: set it to a new or empty folder")
            size = sum(tar.bytes for tar in tars)
            model = obtain_tokenizer(job, ((s.id, s.text) for tar in tars for s in _samples(tar)), size)
            _write(job, tars, model, config, lineage)
        return summary(job, output)


def _tars(source: Source) -> list[_Tar]:
    """The tars that the paths of a source name, sorted within each. Raises ConfigError where one names none."""
    found: list[_Tar] = []
    for pattern in source.paths:
        protocol, path = split(pattern)
        if protocol is None:
            absolute = str(Path(path).expanduser().absolute())
            matches = sorted(glob.glob(absolute, recursive=True))
            found += [_Tar(source, match, Path(match).stat().st_size) for match in matches]
        else:
            matches = [pattern]
            with closing(open_file(pattern)) as file:
                found.append(_Tar(source, pattern, file.seek(0, io.SEEK_END)))
        if not matches:
            raise ConfigError(
                f"tokenize.webdataset: {redacted(pattern)} of source {source.name!r} matches no file (working "
                f"directory {Path.cwd()}): correct it or put the files there"
            )
    return found


def _samples(tar: _Tar) -> Iterator[Sample]:
    with closing(open_file(tar.url)) as file:
        yield from read_samples(file, redacted(tar.url), tar.source.text_field)


def _write(job: Job, tars: list[_Tar], model: Tokenizer, config: dict[str, Any], lineage: str) -> None:
    output, fraction = Path(job.tokenize.output), job.tokenize.held_out
    blocks = [block for tar in tars for block in _blocks(tar, model, job.tokenize.block_documents)]
    splits = {output / "held_out": [b for b in blocks if is_held_out(b[1][0].id, fraction)]} if fraction else {}
    splits[output] = [b for b in blocks if not is_held_out(b[1][0].id, fraction)]
    for folder, own in splits.items():
        if not own:
            what = "selects none" if folder != output else "leaves none"
            raise ConfigError(
                f"tokenize.held_out={fraction} {what} of the {len(blocks)} blocks of samples to "
                f"{'train on' if folder == output else 'hold out'}: change it, or lower tokenize.block_documents"
            )
        header = {
            "kind": "text",
            "tokens": "uint16" if model.vocab_size <= 2**16 else "uint32",
            "text_fields": {source.name: source.text_field for source in job.tokenize.webdataset},
            "tokenizer_sha256": model.sha256,
            "vocab_size": model.vocab_size,
            "config": config,
            "lineage": lineage,
        }
        _write_index(folder, own, header)


def _blocks(tar: _Tar, model: Tokenizer, size: int) -> Iterator[tuple[BlockEntry, list[Document]]]:
    """Blocks of consecutive samples of a tar, verified to be whole, with their documents but for the tokens' values."""
    held: list[Sample] = []
    with closing(open_file(tar.url)) as file:
        for sample in [*_samples(tar), None]:
            if held and (sample is None or len(held) == size):
                yield _block(tar, file, held, model)
                held = []
            if sample is not None:
                held.append(sample)


def _block(tar: _Tar, file: Any, held: list[Sample], model: Tokenizer) -> tuple[BlockEntry, list[Document]]:
    start, end = held[0].start, held[-1].end
    file.seek(start)
    data = file.read(end - start)
    tokens = model.encode_documents([sample.text for sample in held])
    documents = [
        Document(sample.id, tar.source.name, own, len(sample.text.encode()), sample.url)
        for sample, own in zip(held, tokens, strict=True)
    ]
    entry = BlockEntry(
        file=tar.url,
        offset=start,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        tokens_at=-1,
        key=order_key(held[0].id),
        lengths=np.array([len(own) for own in tokens], dtype=np.uint32),
        ids=[sample.id for sample in held],
    )
    return entry, documents


def _write_index(folder: Path, blocks: list[tuple[BlockEntry, list[Document]]], header: dict[str, Any]) -> None:
    clear(folder)
    by_source: dict[str, list[tuple[BlockEntry, list[Document]]]] = {}
    for block in blocks:
        by_source.setdefault(block[1][0].source, []).append(block)
    ordered = [block for own in by_source.values() for block in sorted(own, key=lambda b: (b[0].key, b[0].offset))]
    sources = Sources()
    list(sources.counted(documents for _, documents in ordered))
    rows = []
    for number, first in enumerate(range(0, len(ordered), _INDEX_BLOCKS)):
        entries = [entry for entry, _ in ordered[first : first + _INDEX_BLOCKS]]
        name, index = f"shard-{number:05d}", dump_index(entries)
        publish(folder / f"{name}.idx", index)
        rows.append(
            {
                "name": name,
                "bytes": 0,  # there is no tar of ours
                "sha256": "",
                "index_sha256": hashlib.sha256(index).hexdigest(),
                "documents": sum(len(entry.lengths) for entry in entries),
                "tokens": sum(int(entry.lengths.sum(dtype=np.int64)) for entry in entries),
                "blocks": len(entries),
            }
        )
    write_manifest(folder, header, rows, sources)


def _check_same(output: Path, config: dict[str, Any], lineage: str) -> None:
    manifest = json.loads((output / "manifest.json").read_bytes())
    there = manifest["config"] | {"the tars' names and sizes": manifest["lineage"]}
    wanted = config | {"the tars' names and sizes": lineage}
    if config["tokenizer.model"] == manifest["tokenizer_sha256"]:  # however the index came by it, it is its own
        there["tokenizer.model"] = manifest["tokenizer_sha256"]
    differing = [f"{key}={wanted[key]} (there: {there.get(key)})" for key in wanted if wanted[key] != there.get(key)]
    if differing:
        raise ConfigError(
            f"tokenize.output={output} holds shards of another configuration: {', '.join(differing)}: "
            "set another tokenize.output, or remove the folder"
        )

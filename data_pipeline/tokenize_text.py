"""The job `tokenize`: curated text to a tokenizer, token shards and the plan of their order.

Knows nothing of how text was curated or how a trainer reads shards. Documents are split, sampled and shuffled by hashes
of their ids, so the result depends on the curated text and the configuration alone: not on the run's seed, the number
of cores, or restarts. The documents of a source stay together, so that a mixture can weigh sources when they are read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.exits import ConfigError, DataError
from conf.schema import Job
from data_pipeline import tokenizer as sentencepiece_model
from data_pipeline.decontaminate import certificate
from data_pipeline.lock import locked
from data_pipeline.plan import Packing, dump_plan, load_plan, plan_name
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, order_key, publish, write_shards
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_report import TokenizerReport, render

CURATED_FORMAT = 1  # the newest format of a curated manifest this reads

_SPLITS = ("train", "held_out")
_SCRATCH = "shuffling"  # folder in the output, there until all shards are
_REPORT_PAGE = "tokenizer_report.html"
_READ_ROWS = 1024  # documents in memory at a time while they are read and encoded
_BUCKET_BYTES = 128 * 2**20  # of text: what is sorted in memory at a time
_MOST_FILES = 256  # of buckets, open at a time: a quarter of the usual limit of a process


def tokenize(job: Job) -> dict[str, Any]:
    """Run the job; returns its summary. Beside the shards stands what the tokenizer makes of each language (see
    `tokenizer_report`). Does nothing where the shards of this configuration are already complete.

    Raises DataError where the curated text is missing, empty or not what its manifest says, or the disk fails;
    ConfigError where the output belongs to another configuration or another process is at work on it, or a value cannot
    work with this text.
    """
    curated = Curated.open(job.tokenize.input)
    output = Path(job.tokenize.output)
    config = {
        "tokenizer.model": file_sha256(job.tokenizer.model),
        "tokenizer.vocab_size": job.tokenizer.vocab_size if job.tokenizer.model is None else None,
        "tokenizer.train_bytes": job.tokenizer.train_bytes if job.tokenizer.model is None else None,
        "tokenize.held_out": job.tokenize.held_out,
        "tokenize.shard_tokens": job.tokenize.shard_tokens,
        "tokenize.block_documents": job.tokenize.block_documents,
    }
    manifest, scratch = output / "manifest.json", output / _SCRATCH
    try:
        with locked(output, "tokenize.output"):
            if manifest.exists():
                _check_same(output, config, curated, job)
            else:
                _make_shards(job, curated, config)
            if scratch.exists():
                shutil.rmtree(scratch)
            page = output / _REPORT_PAGE  # shards that an earlier version made have none
            return summary(job, output) | ({"tokenizer_report": str(page)} if page.exists() else {})
    except OSError as error:
        state, remedy = "no shards were published", "free space or set tokenize.output elsewhere"
        if manifest.exists():
            state, remedy = f"the shards of {output} are complete", "free space"
        raise DataError(
            f"tokenize cannot write {error.filename or output} ({error.strerror or error}): {state}; {remedy}, and run "
            "it again"
        ) from error


@dataclass(frozen=True)
class Curated:
    """A verified folder of curated Parquet."""

    folder: Path
    sha256: str  # of its manifest, which through its hashes stands for every byte
    files: list[str]
    decontamination: dict[str, Any] | None  # the certificate of what was kept out

    @classmethod
    def open(cls, folder: str) -> Curated:
        """Read the manifest and check every file and the certificate; DataError says what is missing or differs."""
        path = Path(folder, "manifest.json")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"tokenize.input={folder} holds no curated text ({path}: {error.strerror}): run `gemcutter curate` "
                "first, or set tokenize.input to its output"
            ) from error
        try:
            manifest = json.loads(data)
            version, files, decontamination = manifest["format"], manifest["files"], manifest.get("decontamination")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a manifest of curated text ({error}): rerun `gemcutter curate`") from error
        if version > CURATED_FORMAT:
            raise DataError(
                f"{path} has format {version}, this version reads up to {CURATED_FORMAT}: upgrade gemcutter"
            )
        if not sum(file["documents"] for file in files):
            raise DataError(f"tokenize.input={folder} holds no documents: look at its data_card.html for the reasons")
        for file in files:
            _check_file(path.parent / file["name"], file)
        certificate.check(decontamination, str(path))
        return cls(path.parent, hashlib.sha256(data).hexdigest(), [file["name"] for file in files], decontamination)

    def rows(self) -> Iterator[tuple[list[str], list[str], list[str], list[str], list[str]]]:
        """(ids, texts, sources, urls, languages) of some documents at a time; `und` where no language is stated."""
        columns = ["id", "text", "source", "url", "language"]
        for name in self.files:
            with pq.ParquetFile(self.folder / name) as part:
                for batch in part.iter_batches(_READ_ROWS, columns=columns):  # a column that is not there is left out
                    ids, texts, sources, urls = (batch[column].to_pylist() for column in columns[:4])
                    stated = batch["language"].to_pylist() if "language" in batch.schema.names else [None] * len(ids)
                    yield ids, texts, sources, urls, [language or "und" for language in stated]

    def text_bytes(self) -> dict[str, int]:
        """UTF-8 bytes of the texts of each source."""
        total: dict[str, int] = {}
        for name in self.files:
            with pq.ParquetFile(self.folder / name) as part:
                for batch in part.iter_batches(columns=["text", "source"]):
                    sizes = pa.table({"source": batch["source"], "bytes": pc.binary_length(batch["text"])})
                    summed = sizes.group_by("source").aggregate([("bytes", "sum")]).to_pydict()
                    for source, size in zip(summed["source"], summed["bytes_sum"], strict=True):
                        total[source] = total.get(source, 0) + size
        return total


def is_held_out(document: str, fraction: float) -> bool:
    """Whether the document of this id is never trained on."""
    return _hash(document) < fraction * 2**64


def _hash(document: str, purpose: str = "") -> int:
    """64 bits of an id, independent for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}{document}".encode()).digest()[:8], "big")


def _check_file(path: Path, recorded: dict[str, Any]) -> None:
    try:
        size, digest = path.stat().st_size, file_sha256(path)
    except OSError as error:
        raise DataError(
            f"{path} of the curated text cannot be read ({error.strerror}): rerun `gemcutter curate`"
        ) from error
    if size != recorded["bytes"] or digest != recorded["sha256"]:
        raise DataError(
            f"{path} is not what its manifest says ({size:,} bytes with sha256 {digest}, expected "
            f"{recorded['bytes']:,} with {recorded['sha256']}): copy it again, or remove the folder and rerun "
            "`gemcutter curate`"
        )


def file_sha256(path: str | Path | None) -> str | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _check_same(output: Path, config: dict[str, Any], curated: Curated, job: Job) -> None:
    """Raise ConfigError unless these shards are those that the job would make, and their tokenizer is there."""
    manifest = json.loads((output / "manifest.json").read_bytes())
    wanted = config | {"tokenize.input": curated.sha256}
    there = manifest["config"] | {"tokenize.input": manifest["lineage"]}
    if config["tokenizer.model"] == manifest["tokenizer_sha256"]:  # however the shards came by it, it is theirs
        wanted = {key: value for key, value in wanted.items() if not key.startswith("tokenizer.")}
    differing = [f"{key}={wanted[key]} (there: {there.get(key)})" for key in wanted if wanted[key] != there.get(key)]
    if differing:
        raise ConfigError(
            f"tokenize.output={output} holds shards of another configuration: {', '.join(differing)}: "
            "set another tokenize.output, or remove the folder"
        )
    if job.tokenizer.model is None and not Path(job.tokenizer.output).exists():
        raise ConfigError(
            f"tokenizer.output={job.tokenizer.output}, the tokenizer of the complete shards in "
            f"tokenize.output={output}, is missing: set tokenizer.model to a copy of it (sha256 "
            f"{manifest['tokenizer_sha256']}), or remove {output} to make both again"
        )


def _make_shards(job: Job, curated: Curated, config: dict[str, Any]) -> None:
    text_bytes = curated.text_bytes()
    fraction = job.tokenize.held_out
    documents = held_out = 0
    for ids, *_ in curated.rows():
        documents += len(ids)
        held_out += sum(is_held_out(document, fraction) for document in ids)
    if fraction and not held_out:
        raise ConfigError(
            f"tokenize.held_out={fraction} selects none of the {documents} documents: use about "
            f"tokenize.held_out={min(0.5, 5 / documents):.2g}, or 0 and data.held_out=null for none"
        )
    if held_out == documents:
        raise ConfigError(
            f"tokenize.held_out={fraction} leaves none of the {documents} documents to train on: lower it"
        )
    scratch = _claim(Path(job.tokenize.output))
    texts = (pair for ids, texts, *_ in curated.rows() for pair in zip(ids, texts, strict=True))
    model = obtain_tokenizer(job, texts, sum(text_bytes.values()))
    common: dict[str, Any] = {
        "shard_tokens": job.tokenize.shard_tokens,
        "block_documents": job.tokenize.block_documents,
        "tokenizer_sha256": model.sha256,
        "vocab_size": model.vocab_size,
        "config": config,
        "lineage": curated.sha256,
        "decontamination": curated.decontamination,
    }
    shuffled = _Shuffled(scratch, text_bytes)
    report = TokenizerReport(job.tokenizer.model or job.tokenizer.output)
    _encode(curated, model, fraction, shuffled, report)
    _publish_report(Path(job.tokenize.output), report.values(curated.sha256))
    if fraction:
        write_shards(shuffled.documents("held_out"), Path(job.tokenize.output, "held_out"), **common)
    write_shards(shuffled.documents("train"), job.tokenize.output, **common)


def _claim(output: Path) -> Path:
    """Make the output folder ours; returns its folder for scratch files, which stands there until all is published.

    So a folder with scratch files is one that an interrupted run left, and may be cleared; any other is refused.
    """
    scratch = output / _SCRATCH
    if scratch.exists():
        shutil.rmtree(scratch)
        for manifest in output.glob("held_out/manifest.json"):
            manifest.unlink()
    elif output.exists() and any(output.iterdir()):
        raise ConfigError(
            f"tokenize.output={output} holds other files and no shards: set tokenize.output to a new or empty folder"
        )
    scratch.mkdir(parents=True)
    return scratch


def obtain_tokenizer(job: Job, texts: Iterable[tuple[str, str]], text_bytes: int) -> Tokenizer:
    """The tokenizer of the job; trained on the texts (by id), without the held-out documents, where it names none."""
    settings = job.tokenizer
    if settings.model is not None:
        return Tokenizer.load(settings.model)
    share = min(1.0, settings.train_bytes / max(1, text_bytes)) * 2**64
    sample = (
        text
        for document, text in texts
        if _hash(document, "tokenizer ") < share and not is_held_out(document, job.tokenize.held_out)
    )
    model, output = sentencepiece_model.train(sample, settings.vocab_size, settings.threads), Path(settings.output)
    if output.exists() and output.read_bytes() != model:
        raise ConfigError(
            f"tokenizer.output={output} holds another model, which other shards may need: set another "
            "tokenizer.output, set tokenizer.model to it to use it, or remove it"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    publish(output, model)
    return Tokenizer.load(output)


def _encode(curated: Curated, model: Tokenizer, fraction: float, shuffled: _Shuffled, report: TokenizerReport) -> None:
    for ids, texts, sources, urls, languages in curated.rows():
        tokens = model.encode_documents(texts)
        sizes = [len(text.encode()) for text in texts]
        report.add(ids, texts, sizes, languages, tokens)
        splits = ["held_out" if is_held_out(document, fraction) else "train" for document in ids]
        for split in _SPLITS:
            chosen = [number for number, which in enumerate(splits) if which == split]
            shuffled.add(split, [Document(ids[n], sources[n], tokens[n], sizes[n], urls[n] or "") for n in chosen])
    shuffled.close()


def _publish_report(output: Path, report: dict[str, Any]) -> None:
    """Before the manifests: a folder that has one is complete."""
    publish(output / "tokenizer_report.json", (json.dumps(report, indent=2) + "\n").encode())
    publish(output / _REPORT_PAGE, render(report).encode())


class _Shuffled:
    """Documents by source, and those of a source in the order of `order_key`, sorted on disk in buckets.

    Each bucket is a range of that order, of about `_BUCKET_BYTES` of text: several small sources, or a part of a large
    one. The number of buckets does not change the order.
    """

    _SCHEMA = pa.schema(
        [
            ("key", pa.uint64()),
            ("id", pa.string()),
            ("source", pa.string()),
            ("url", pa.string()),
            ("bytes", pa.int64()),
            ("tokens", pa.large_list(pa.int32())),
        ]
    )

    def __init__(self, folder: Path, text_bytes: dict[str, int]) -> None:
        self.folder = folder
        self._sizes, self._before, total = text_bytes, {}, 0
        for source in sorted(text_bytes):
            self._before[source] = total
            total += text_bytes[source]
        self._buckets = max(1, min(_MOST_FILES // len(_SPLITS), -(-total // _BUCKET_BYTES)))  # of each split
        self._total = max(1, total)
        self._files: dict[tuple[str, int], pa.RecordBatchFileWriter] = {}

    def add(self, split: str, documents: list[Document]) -> None:
        """Put documents into the buckets of a split."""
        by_bucket: dict[int, list[dict[str, Any]]] = {}
        for document in documents:
            key = order_key(document.id)
            by_bucket.setdefault(self._bucket(document.source, key), []).append({"key": key, **vars(document)})
        for bucket, rows in by_bucket.items():
            if (split, bucket) not in self._files:
                self._files[split, bucket] = pa.ipc.new_file(self.folder / f"{split}-{bucket}", self._SCHEMA)
            self._files[split, bucket].write_batch(pa.RecordBatch.from_pylist(rows, self._SCHEMA))

    def _bucket(self, source: str, key: int) -> int:
        """Where a document would stand if documents of a source were spread evenly over the range of keys."""
        position = self._before[source] + (key * self._sizes[source] >> 64)
        return min(self._buckets - 1, position * self._buckets // self._total)

    def close(self) -> None:
        """End writing."""
        for file in self._files.values():
            file.close()

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, shuffled."""
        for which, bucket in sorted(self._files):
            if which != split:
                continue
            with pa.ipc.open_file(self.folder / f"{split}-{bucket}") as file:
                table = file.read_all().combine_chunks()
            keys = [("source", "ascending"), ("key", "ascending"), ("id", "ascending")]
            order = pc.sort_indices(table, sort_keys=keys)
            columns = [table[name].to_pylist() for name in ("id", "source", "bytes", "url")]
            tokens = table["tokens"].chunk(0)
            flat, ends = tokens.values.to_numpy(), tokens.offsets.to_numpy()
            for number in order.to_numpy():
                name, source, size, url = (column[number] for column in columns)
                yield Document(name, source, flat[ends[number] : ends[number + 1]], size, url)


def summary(job: Job, output: Path) -> dict[str, Any]:
    """What there is now, with the plan of this job's packing beside the shards."""
    how = Packing(job.data.sequence_length, job.data.packing, job.data.window_blocks)
    made: dict[str, Any] = {"manifest": str(output / "manifest.json")}
    folders = [output] + ([output / "held_out"] if job.tokenize.held_out else [])
    for folder in folders:
        shards = Shards.open(str(folder / "manifest.json"))
        plan = load_plan(shards, how)
        publish(folder / plan_name(how), dump_plan(shards, how, plan))
        figures = {
            "documents": shards.documents,
            "tokens": shards.tokens,
            "text_bytes": shards.text_bytes,
            "sources": {source.name: source.tokens for source in shards.sources},
            **plan.figures(),
        }
        if folder == output:
            tokenizer = job.tokenizer.model or job.tokenizer.output
            shards.check_tokenizer(Tokenizer.load(tokenizer))
            made |= figures | {"tokenizer": tokenizer, "vocab_size": shards.vocab_size}
        else:
            made["held_out"] = figures
    return made

"""The `curate` job: sources -> extract -> scrub -> judge -> exact duplicates -> a folder of Parquet with its data card.

The folder appears complete or not at all: everything is written beside it and renamed at the end. Its bytes depend on
the inputs and the configuration only, not on the number of workers or on restarts.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from conf.schema import FORMAT, Curate, Job, Source
from data_pipeline import data_card, parts
from data_pipeline.dedup import ExactDuplicates
from data_pipeline.document import EXTRAS, Record, Verdict, require
from data_pipeline.durable import sync
from data_pipeline.identifier import Identifiers
from data_pipeline.lock import locked
from data_pipeline.pool import OrderedMap, ordered_map
from data_pipeline.sources import SOURCES, label, local, origin, without_folders
from data_pipeline.tally import Tally

KIND = "curated_text"
# Records handed to a worker at a time: enough to outweigh the hand-over, few enough to keep memory small.
CHUNK_RECORDS, CHUNK_BYTES = 256, 1 << 20
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Where the text lies and how many processes write it does not change it.
NOT_IDENTITY = ("output", "workers")


def curate(job: Job) -> dict[str, Any]:
    """Curate what `job.curate` names into the folder `job.curate.output`.

    Returns the summary: `output`, the counts of the manifest (documents and bytes in and kept, dropped by reason,
    scrubbed, per source, languages), `parts`, `lineage`, and `reused`, which is true where the folder already held the
    result of this configuration and nothing was done.

    Raises ConfigError where a source is missing, an extra is not installed, or the folder holds something else;
    DataError where a file is not what its name says, a source gives no document, or nothing is left. Then the folder
    does not exist.
    """
    if not job.curate.sources:
        raise ConfigError("curate.sources is empty: name at least one source, for example [{kind: python_env}]")
    output, config = Path(job.curate.output), _identity(job.curate)
    inputs = _inputs(job.curate)
    if (manifest := _published(output, config, inputs)) is not None:
        return _summary(output, manifest, reused=True)
    require(*(module for module, extra in EXTRAS.items() if extra == "curate"))
    with _workspace(output) as folder:
        manifest = _write(folder, job, config, inputs)
    return _summary(output, manifest, reused=False)


def _identity(curate: Curate) -> dict[str, Any]:
    """The keys that the curated text depends on."""
    return {key: value for key, value in dataclasses.asdict(curate).items() if key not in NOT_IDENTITY}


def _inputs(curate: Curate) -> dict[str, Any]:
    """Fingerprints of the files that local sources name, by place in the list. Other sources have no cheap one."""
    local_sources = ((n, source) for n, source in enumerate(curate.sources) if source.kind == "local")
    return {f"sources[{n}]": local.fingerprint(source) for n, source in local_sources}


def _summary(output: Path, manifest: dict[str, Any], reused: bool) -> dict[str, Any]:
    return {
        "output": str(output),
        **manifest["counts"],
        "parts": len(manifest["files"]),
        "lineage": manifest["lineage"],
        "reused": reused,
    }


def _published(output: Path, config: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest in the folder where it is the result of this very job; None where there is no folder yet.

    Raises ConfigError where the folder holds anything else.
    """
    path = output / "manifest.json"
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ConfigError(
                f"curate.output={output} exists and holds no curated text (no manifest.json): "
                "choose another curate.output, or move that away"
            )
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): delete the folder {output} and curate again") from error
    if manifest.get("kind") != KIND:
        raise ConfigError(
            f"curate.output={output} holds something else than curated text: choose another curate.output"
        )
    if manifest.get("format", 0) > FORMAT:
        raise DataError(f"{path} has format {manifest['format']}, this version reads up to {FORMAT}: upgrade gemcutter")
    remedy = f"choose another curate.output, or delete the folder {output} to curate again"
    if changes := _differences(manifest["config"], config):
        raise ConfigError(f"{output} was curated with other keys ({'; '.join(changes)}): {remedy}")
    if changes := _differences(manifest["inputs"], inputs):
        raise ConfigError(f"{output} was curated from other files ({'; '.join(changes)}): {remedy}")
    return manifest


def _differences(before: Any, now: Any, path: str = "curate") -> list[str]:
    """Dotted paths whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [change for key in keys for change in _differences(before.get(key), now.get(key), f"{path}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and path == "curate.sources":
        pairs = enumerate(zip(before, now, strict=True))
        return [change for n, (old, new) in pairs for change in _differences(old, new, f"{path}[{n}]")]
    return [] if before == now else [f"{path} was {before!r}, is {now!r}"]


@contextmanager
def _workspace(output: Path) -> Iterator[Path]:
    """A locked folder beside `output` that becomes it when the block ends well, and is removed when it does not.

    What a killed run left there is removed first. Raises ConfigError when another process is at work on it.
    """
    folder = output.with_name(output.name + ".partial")
    published = False
    with locked(folder, "curate.output"):
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
            sync(folder)
            os.rename(folder, output)  # over an empty folder too; never over a full one
            published = True
            sync(output.parent)
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            state = "the text is there, but may not outlast a power cut" if published else "nothing was published"
            raise DataError(
                f"writing {folder} failed ({error}): {state}; free space or choose another curate.output"
            ) from error
        finally:
            if not published:
                shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, job: Job, config: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """Everything that the published folder holds, manifest last. Returns the manifest."""
    tally = Tally()
    kept = parts.PartWriter(folder, parts.KEPT, job.curate.part_bytes)
    removed = parts.PartWriter(folder / "removed", parts.REMOVED, job.curate.part_bytes)
    try:
        for source, verdict, row in _judged(job.curate):
            tally.add(label(source), row, row["reason"], verdict.extracted_bytes)
            if row["reason"]:
                removed.add(row)
            else:
                kept.add({name: value for name, value in row.items() if name != "reason"})
        files, removed_files = kept.close(), removed.close()
    finally:
        kept.abandon()
        removed.abandon()
    counts = tally.counts()
    if not counts["documents_kept"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts["dropped"].items())
        raise DataError(
            f"none of {counts['documents_in']} documents was kept ({reasons}): nothing was written; "
            "loosen curate.min_words, curate.languages or curate.language_confidence, or add sources"
        )
    lineage = _digest({"config": config, "files": [file["sha256"] for file in files]})
    card = {
        "format": FORMAT,
        "name": job.name,
        "lineage": lineage,
        "counts": counts,
        **tally.details(),
        "config": config | {"sources": [dataclasses.asdict(without_folders(source)) for source in job.curate.sources]},
    }
    manifest = {
        "format": FORMAT,
        "kind": KIND,
        "lineage": lineage,
        "counts": counts,
        "files": files,
        "removed": removed_files,
        "inputs": inputs,
        "config": config,
    }
    _write_text(folder / "data_card.json", _json(card))
    _write_text(folder / "data_card.html", data_card.render(card))
    _write_text(folder / "manifest.json", _json(manifest))
    return manifest


def _judged(curate: Curate) -> Iterator[tuple[Source, Verdict, dict[str, Any]]]:
    """Every document in order with its verdict and its row, whose `reason` is "" where it is kept.

    Raises DataError where a source gives no document.
    """
    identifiers, duplicates = Identifiers(), ExactDuplicates()
    with ordered_map(curate.workers) as over:
        for source in curate.sources:
            empty = True
            for verdict in _verdicts(source, curate, over):
                empty = False
                reason = verdict.reason
                if not reason and duplicates.repeats(verdict.fingerprint):
                    reason = "exact_duplicate"
                yield source, verdict, _row(source, verdict, reason, identifiers)
            if empty:
                raise DataError(
                    f"source {label(source)!r} ({origin(source)}, working directory {Path.cwd()}) gave no document: "
                    "nothing was written; check what it names, or take it out of curate.sources"
                )


def _verdicts(source: Source, curate: Curate, over: OrderedMap) -> Iterator[Verdict]:
    """Verdicts on a source's records, until `limit_bytes` of text came."""
    from data_pipeline.judge import Rules, judge_all  # its finders need the extra, which is asked for first

    rules = Rules(tuple(curate.languages), curate.language_confidence, curate.min_words, curate.max_words)
    taken = 0
    with closing(SOURCES[source.kind](source)) as records:  # type: ignore[type-var]
        for chunk in over(functools.partial(judge_all, rules=rules), _chunks(records)):
            for verdict in chunk:
                yield verdict
                taken += verdict.extracted_bytes
                if source.limit_bytes is not None and taken >= source.limit_bytes:
                    return


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.content)
        if len(chunk) >= CHUNK_RECORDS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _row(source: Source, verdict: Verdict, reason: str, identifiers: Identifiers) -> dict[str, Any]:
    """The columns of `parts.REMOVED`. A configured name wins over the source that the record states; the licence that
    the record states wins over the configured one, which is for those that state none."""
    record = verdict.record
    return {
        "id": identifiers.name(label(source), record),
        "text": verdict.text,
        "url": record.url,
        "source": source.name or record.source or source.kind,
        "language": verdict.language,
        "license": record.license or source.license,
        "quality": verdict.quality,
        "stated_language": record.language,
        **verdict.signals,
        "reason": reason,
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

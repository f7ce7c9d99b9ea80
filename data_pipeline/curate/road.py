"""The stages of a curation in their order.

    benchmarks, quality, toxicity, reference   what is made before reading, where it is asked for
    read       records to documents, and all that is known of each alone
    judge      limits against what was measured
    equal, similar   what says the same as something better, or as something earlier
    settle     which documents stay, and the lines of these
    common, names    lines that many share, and names that several want
    write      the parts that are published

A stage is a list of tasks that commit what they did, in a folder named by what it depends on. So after a failure, or
with other limits, what is there already is not done again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from conf.exits import DataError
from conf.schema import FORMAT, Curate, Job, Source
from data_pipeline import sources
from data_pipeline.card.changes import FORMAT as CARD_FORMAT
from data_pipeline.card.changes import changes
from data_pipeline.card.page import render
from data_pipeline.card.tally import Tally
from data_pipeline.curate import earlier, inputs, judging, limits, models, naming, publish, reading, settling, writing
from data_pipeline.curate.inspectors import Files
from data_pipeline.curate.publish import copy, place, write_json, write_text
from data_pipeline.curate.stages import Stages
from data_pipeline.decontaminate.actions import Action
from data_pipeline.decontaminate.certificate import Found, filled
from data_pipeline.decontaminate.index import Index
from data_pipeline.duplicates import lines, merged, steps
from data_pipeline.durable import sync
from data_pipeline.engine import records
from data_pipeline.engine.records import Do
from data_pipeline.engine.stage import Facts
from data_pipeline.signals import gopher
from data_pipeline.signals.calibrate import Calibrated
from data_pipeline.signals.thresholds import Thresholds
from data_pipeline.sources import label, origin
from data_pipeline.tokenize_text import file_sha256

FIRST_NEW = 1 << 20  # task: those before it are of parts of earlier text, so that naming some moves no number
_AT_ONCE = 16  # times `part_bytes` of text that a task of writing reads at most, however little of it is kept


@dataclass(frozen=True)
class Models:
    """What is made before reading. Files; `made_of` is what they depend on, as JSON."""

    made_of: Any
    index: Path | None
    certificate: dict[str, Any] | None
    quality: str | None
    toxicity: str | None
    reports: dict[str, Any]  # of the classifiers that were trained
    calibrated: dict[str, Calibrated]
    files: dict[str, Path]  # of models and limits, by the names under which they are published


@dataclass(frozen=True)
class Part:
    """A part that a task read: the number of its first document, the place of its source, and the facts of it."""

    folder: Path
    first: int
    source: int
    facts: Facts


def curate(
    job: Job,
    stages: Stages,
    benchmarks: models.Benchmarks | None,
    config: dict[str, Any],
    fingerprints: dict[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Do all stages, and write what is published into the folder, manifest last. Returns the manifest.

    Raises ConfigError or DataError; what was committed stays.
    """
    keys = job.curate
    before = None if keys.previous is None else publish.card_of(Path(keys.previous))
    made = _models(keys, stages, benchmarks, fingerprints)
    by_language = limits.limits(keys.thresholds, made.calibrated)
    parts, read_of = _read(keys, stages, made)
    judged, judged_of = _judge(keys, stages, made, by_language, parts, read_of)
    settled, settled_of = _settle(keys, stages, parts, judged, judged_of)
    written = _write(keys, stages, parts, judged, settled, settled_of)

    tally = Tally()
    for _, facts in written:
        tally.merge(Tally.from_json(facts["tally"]))
    values = tally.card_values()
    counts = values["counts"]
    if not counts["documents_kept"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts["dropped"].items())
        raise DataError(
            f"none of {counts['documents_in']} documents was kept ({reasons}): nothing was published; loosen "
            "curate.thresholds, curate.languages or curate.language_confidence, or add sources"
        )
    certificate = None if made.certificate is None else _certificate(made, judged)
    kept = _place(written, "kept", folder)
    lineage = publish.digest(
        {"config": config, "files": [file["sha256"] for file in kept], "decontamination": certificate}
    )
    card: dict[str, Any] = {
        "format": CARD_FORMAT,
        "name": job.name,
        "lineage": lineage,
        **values,
        "duplicates": {**values["duplicates"], "earlier": config["duplicates"]["earlier"]},
        "contamination": certificate,
        "classifiers": made.reports,
        "thresholds": limits.plain(by_language),
        "calibrated": {language: one.documents for language, one in sorted(made.calibrated.items())},
        "config": config,
    }
    card["changes"] = None if before is None else changes(before, card)
    manifest = {
        "format": FORMAT,
        "kind": publish.KIND,
        "lineage": lineage,
        "counts": counts,
        "files": kept,
        "removed": _place(written, "removed", folder / "removed"),
        "models": {name: file_sha256(file) for name, file in made.files.items()},
        "decontamination": certificate,
        "inputs": fingerprints,
        "config": config,
    }
    for name, file in made.files.items():
        copy(file, folder / name)
    write_json(folder / "data_card.json", card)
    write_text(folder / "data_card.html", render(card))
    write_json(folder / "manifest.json", manifest)
    return manifest


# ---- before reading --------------------------------------------------------------------------------------------------


def _models(keys: Curate, stages: Stages, benchmarks: models.Benchmarks | None, fingerprints: dict[str, Any]) -> Models:
    of_files = {key: value for key, value in fingerprints.items() if not key.startswith(("sources", "duplicates"))}
    made_of: list[Any] = [FORMAT, version("gemcutter"), of_files, dataclasses.asdict(keys.extract)]
    index = certificate = None
    if benchmarks is not None:
        depends = [made_of, keys.decontaminate.action]
        [(folder, _)] = stages.do("benchmarks", depends, models.build_index, [benchmarks])
        index = folder / models.INDEX
        certificate = json.loads((folder / models.CERTIFICATE).read_text("utf-8"))
    learned, reports, files = [], {}, {}
    classifiers: dict[str, str | None] = {"quality": keys.quality.model, "toxicity": keys.toxicity.model}
    for task in _classifiers(keys):
        depends = [made_of, task.name, _learned_from(task.positive), _learned_from(task.negative)]
        [(folder, _)] = stages.do(task.name, depends, models.train_classifier, [task])
        learned.append(depends)
        classifiers[task.name] = str(folder / models.MODEL)
        files[f"{task.name}.npz"] = folder / models.MODEL
        reports[task.name] = json.loads((folder / models.REPORT).read_text("utf-8"))
    if keys.reference:
        reference = models.Reference(keys.reference, keys.private.key_file, keys.extract)
        depends = [made_of, _learned_from(keys.reference)]
        [(folder, _)] = stages.do("reference", depends, models.take_limits, [reference])
        learned.append(depends)
        files[models.CALIBRATED] = folder / models.CALIBRATED
    elif keys.calibrated is not None:
        files[models.CALIBRATED] = Path(keys.calibrated)
    return Models(
        made_of=[made_of, learned],
        index=index,
        certificate=certificate,
        quality=classifiers["quality"],
        toxicity=classifiers["toxicity"],
        reports=reports,
        calibrated=models.load_limits(files[models.CALIBRATED]) if models.CALIBRATED in files else {},
        files=files,
    )


def _classifiers(keys: Curate) -> list[models.Classifier]:
    quality, toxicity, key = keys.quality, keys.toxicity, keys.private.key_file
    wanted = [
        models.Classifier("quality", quality.good, quality.bad, False, key, keys.extract),
        models.Classifier("toxicity", toxicity.toxic, toxicity.clean, True, key, keys.extract),
    ]
    return [task for task in wanted if task.positive]


def _as_json(chosen: Sequence[Source]) -> list[Any]:
    """Sources as what is read of them depends on them: with the time at which each of their files was changed last."""
    return [(dataclasses.asdict(source), inputs.versions(source)) for source in chosen]


def _learned_from(chosen: Sequence[Source]) -> list[Any]:
    """The same of sources that are read whole, of every kind."""
    return [
        (dataclasses.asdict(source), inputs.versions(source) or _pieces_as_json([*enumerate(sources.pieces(source))]))
        for source in chosen
    ]


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(keys: Curate, stages: Stages, made: Models) -> tuple[list[Part], Any]:
    """All parts in order, and what they depend on. Raises DataError where a source gives no document."""
    chosen = _as_json(keys.sources)
    pieces = [(n, piece) for n, source in enumerate(keys.sources) for piece in sources.pieces(source, keys.slice_bytes)]
    how = reading.How(
        extract_seconds=keys.extract.seconds,
        extract_memory=keys.extract.memory_bytes,
        largest_bytes=keys.extract.largest_bytes,
        part_bytes=keys.part_bytes,
        files=Files(
            key=keys.private.key_file,
            blocked=tuple(keys.harm.blocked),
            prohibited=tuple(keys.harm.prohibited),
            lexicons=tuple(keys.harm.lexicons),
            quality=made.quality,
            toxicity=made.toxicity,
            index=None if made.index is None else str(made.index),
            contents=publish.digest(made.made_of),
        ),
        stop_words=gopher.STOP_WORDS | {language: one.stop_words for language, one in made.calibrated.items()},
    )
    tasks = [
        reading.Read(FIRST_NEW + number, keys.sources[n], n, piece, how) for number, (n, piece) in enumerate(pieces)
    ]
    # Not the limits among the keys, which are held against what was measured: and what files hold is in `made_of`.
    depends = [made.made_of, chosen, _pieces_as_json(pieces), keys.part_bytes]
    reading.warm_up()
    do = functools.partial(stages.do, "read", depends, reading.read, tasks)
    parts: list[Part] = []
    for number, (folder, facts) in _as_far_as_asked(keys.sources, pieces, do):
        for n, of_part in enumerate(facts["parts"]):
            first_document = (tasks[number].number << 32) + of_part["first"]
            parts.append(Part(folder / f"{n:05d}", first_document, tasks[number].rank, of_part))
    for source, (_, seen) in zip(keys.sources, chosen, strict=True):
        inputs.unchanged(source, seen)
    for n, source in enumerate(keys.sources):
        if not any(part.source == n for part in parts):
            raise DataError(
                f"source {label(source)!r} ({origin(source)}, working directory {Path.cwd()}) gave no document: "
                "nothing was published; check what it names, or take it out of curate.sources"
            )
    return parts, depends


def _as_far_as_asked(chosen: Sequence[Source], pieces: Sequence[tuple[int, Any]], do: Any) -> list[tuple[int, Any]]:
    """Do the tasks of all pieces; of a source with `limit_bytes`, twice as many each time until it gave enough."""
    numbers: dict[int, list[int]] = {n: [] for n in range(len(chosen))}
    for number, (n, _) in enumerate(pieces):
        numbers[n].append(number)
    taken = {n: len(of_source) if chosen[n].limit_bytes is None else 1 for n, of_source in numbers.items()}
    while True:
        wanted = [number for n, of_source in numbers.items() for number in of_source[: taken[n]]]
        done = dict(zip(wanted, do(wanted), strict=True))
        short = []
        for n, of_source in numbers.items():
            limit, begun = chosen[n].limit_bytes, of_source[: taken[n]]
            given = sum(part["extracted_bytes"] for number in begun for part in done[number][1]["parts"])
            if limit is not None and given < limit and len(begun) < len(of_source):
                short.append(n)
        if not short:
            return [*done.items()]
        for n in short:
            taken[n] *= 2


def _pieces_as_json(pieces: Sequence[tuple[int, Any]]) -> Any:
    return [
        (n, [dataclasses.asdict(one) for one in (piece if isinstance(piece, tuple) else [piece])])
        for n, piece in pieces
    ]


# ---- judging ---------------------------------------------------------------------------------------------------------


def _judge(
    keys: Curate, stages: Stages, made: Models, by_language: dict[str, Thresholds], parts: Sequence[Part], read_of: Any
) -> tuple[list[tuple[Path, Facts]], Any]:
    chosen = judging.Limits(
        languages=tuple(keys.languages),
        language_confidence=keys.language_confidence,
        thresholds=by_language,
        least_quality=keys.quality.least,
        most_toxicity=keys.toxicity.most,
        most_bad_words=keys.harm.most_words,
        most_private_items=keys.private.most_items,
        action=cast(Action, keys.decontaminate.action),
    )
    index = None if made.index is None else str(made.index)
    left = {n: source.limit_bytes for n, source in enumerate(keys.sources)}
    tasks = []
    for part in parts:
        budget = left[part.source]
        tasks.append(judging.Judge(part.folder, part.first, budget, index, chosen))
        if budget is not None:
            left[part.source] = budget - part.facts["extracted_bytes"]
    depends = [read_of, dataclasses.asdict(chosen)]
    return stages.do("judge", depends, judging.judge, tasks), depends


def _certificate(made: Models, judged: Sequence[tuple[Path, Facts]]) -> dict[str, Any]:
    """The certificate with what was found."""
    assert made.certificate is not None
    assert made.index is not None
    found = Found()
    for _, facts in judged:
        of_part = facts["found"]
        items = {name: set(numbers) for name, numbers in of_part["items"].items()}
        found.merge(Found(of_part["documents"], of_part["contaminated"], items))
    return filled(made.certificate, Index.open(made.index), found)


# ---- what says the same ----------------------------------------------------------------------------------------------


def _settle(
    keys: Curate, stages: Stages, parts: Sequence[Part], judged: Sequence[tuple[Path, Facts]], judged_of: Any
) -> tuple[list[tuple[Path, Facts]], Any]:
    """Which documents of each part stay."""
    before = _earlier_parts(keys)
    first_new = FIRST_NEW << 32
    tasks = [earlier.Earlier(path, sha256, number) for number, (path, sha256) in enumerate(before)]
    read_of = [FORMAT, version("gemcutter"), before]
    already = [folder for folder, _ in stages.do("earlier", read_of, earlier.read_earlier, tasks)] if tasks else []
    folders = [*already, *(part.folder for part in parts)]
    gone = [folder / judging.GONE_FILE for folder, _ in judged]
    depends = [judged_of, dataclasses.asdict(keys.duplicates), before]

    do = stages.depending(depends)
    folders, gone = merged.few(folders, do), records.few("gone", gone, do)
    equal = _few(steps.equal(folders, gone, first_new, do), "equal", do)
    similar = None
    if keys.duplicates.similarity is not None:
        sketch, least = reading.SHINGLING.sketch, keys.duplicates.similarity
        similar = steps.similar(folders, [*gone, *equal.removed], first_new, sketch, least, do)
        similar = _few(similar, "similar", do)
    lines_too = keys.duplicates.repeated_in is not None
    settle = [
        settling.Settle(part.folder, part.first, of_part, equal, similar, lines_too)
        for part, (of_part, _) in zip(parts, judged, strict=True)
    ]
    return do("settle", settling.settle, settle), depends


def _few(found: steps.Found, name: str, do: Do) -> steps.Found:
    """What was found, in few files: each part is settled by all of them."""
    removed = records.few(f"{name}-removed", found.removed, do)
    return steps.Found(removed, records.few(f"{name}-kept", found.kept, do))


def _earlier_parts(keys: Curate) -> list[tuple[str, str]]:
    """The files of earlier curated text, in order, and the SHA-256 of each."""
    found = []
    for folder in map(Path, keys.duplicates.earlier):
        manifest = publish.manifest_of(folder, "name folders of curated text in curate.duplicates.earlier")
        found += [(str(folder / file["name"]), file["sha256"]) for file in manifest["files"]]
    return found


# ---- writing ---------------------------------------------------------------------------------------------------------


def _write(
    keys: Curate,
    stages: Stages,
    parts: Sequence[Part],
    judged: Sequence[tuple[Path, Facts]],
    settled: Sequence[tuple[Path, Facts]],
    depends: Any,
) -> list[tuple[Path, Facts]]:
    do = stages.depending(depends)
    common: list[Path] = []
    if (least := keys.duplicates.repeated_in) is not None:
        files = records.few("lines", [folder / lines.FILE for folder, _ in settled], do)
        counts = [lines.Count(files, least, *bounds) for bounds in _ranges(files)]
        found = [folder / lines.COMMON_FILE for folder, _ in do("common", lines.count, counts)]
        common = records.few("common-merged", found, do)
    files = records.few("names-merged", [folder / naming.NAMES for folder, _ in judged], do)
    names = [naming.Repeats(files, *bounds) for bounds in _ranges(files)]
    found = [folder / naming.REPEATS for folder, _ in do("names", naming.repeats, names)]
    repeats = records.few("repeats", found, do)
    action = cast(Action, keys.decontaminate.action)
    tasks = [
        writing.Write(run, common, repeats, action, keys.part_bytes)
        for run in _runs(keys.part_bytes, keys.sources, parts, settled)
    ]
    return do("write", writing.write, tasks)


def _ranges(files: Sequence[Path]) -> list[tuple[int, int]]:
    return records.ranges(sum(file.stat().st_size for file in files))


def _runs(
    part_bytes: int, chosen: Sequence[Source], parts: Sequence[Part], settled: Sequence[tuple[Path, Facts]]
) -> list[list[writing.Part]]:
    """Runs of parts as they were read of which about `part_bytes` of text stay."""
    runs: list[list[writing.Part]] = []
    run: list[writing.Part] = []
    stays = size = 0
    for part, (folder, facts) in zip(parts, settled, strict=True):
        run.append(writing.Part(part.folder, folder, part.first, label(chosen[part.source])))
        stays += facts["bytes"]
        size += part.facts["bytes"]
        if stays >= part_bytes or size >= _AT_ONCE * part_bytes:
            runs.append(run)
            run, stays, size = [], 0, 0
    return [*runs, run] if run else runs


def _place(written: Sequence[tuple[Path, Facts]], kind: str, folder: Path) -> list[dict[str, Any]]:
    """Have the parts of all tasks appear in the folder, numbered through. Returns their facts."""
    folder.mkdir(exist_ok=True)
    files: list[dict[str, Any]] = []
    for source, facts in written:
        for file in facts[kind]:
            name = f"part-{len(files):05d}.parquet"
            place(source / file["name"], folder / name)
            files.append({**file, "name": name})
    sync(folder)
    return files

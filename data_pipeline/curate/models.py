"""Tasks that come before reading: the index of benchmarks, classifiers, and limits from a reference set."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from conf.exits import ConfigError, DataError
from conf.schema import Decontaminate, Extract, Source
from data_pipeline import signals, sources
from data_pipeline.batched import batched
from data_pipeline.classify.language import identify
from data_pipeline.classify.train import Sample, split, train
from data_pipeline.curate import inspectors
from data_pipeline.curate.reading import chunks
from data_pipeline.decontaminate import items
from data_pipeline.decontaminate.actions import Action
from data_pipeline.decontaminate.certificate import Found, certify
from data_pipeline.decontaminate.index import Index
from data_pipeline.decontaminate.items import Evaluation
from data_pipeline.extract import of_this_process
from data_pipeline.private.scrub import scrub
from data_pipeline.signals import calibrate
from data_pipeline.signals.calibrate import Calibrated
from data_pipeline.signals.tokens import Tokens

INDEX, CERTIFICATE = "benchmarks.index", "certificate.json"
MODEL, REPORT = "model.npz", "report.json"
CALIBRATED = "calibrated.json"
MOST_REFERENCE, MOST_REFERENCES = 10_000_000, 200_000_000  # characters of a language, and of all: they are held at once
_BATCH_CHARACTERS = 1 << 20


# ---- benchmarks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmarks:
    """`published` are folders of known benchmarks by name, `others` files of any form by name."""

    published: Sequence[tuple[str, str]]
    others: Sequence[tuple[str, tuple[str, ...]]]
    key: str | None
    action: Action

    def files(self) -> dict[str, list[str]]:
        """The files of each, by its name."""
        below = {
            name: sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
            for name, folder in self.published
        }
        return below | {name: [*paths] for name, paths in self.others}


def benchmarks(chosen: Decontaminate, key: str | None) -> Benchmarks | None:
    """What is to be kept out; None for nothing. Raises ConfigError where a name or path leads nowhere."""
    published = []
    if chosen.folder is not None:
        folder = Path(chosen.folder).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"curate.decontaminate.folder={chosen.folder} is no folder: correct the path")
        published = [(name, str(folder / name)) for name in items.LAYOUTS if (folder / name).is_dir()]
        if not published:
            raise ConfigError(
                f"curate.decontaminate.folder={chosen.folder} holds no folder of a known benchmark "
                f"({', '.join(items.LAYOUTS)}): correct the path, or name files in curate.decontaminate.benchmarks"
            )
    others = []
    for name, pattern in sorted(chosen.benchmarks.items()):
        paths = sorted(
            path for path in glob.glob(str(Path(pattern).expanduser()), recursive=True) if Path(path).is_file()
        )
        if not paths:
            raise ConfigError(f"curate.decontaminate.benchmarks.{name}={pattern} matches no file: correct the glob")
        others.append((name, tuple(paths)))
    return Benchmarks(published, others, key, cast(Action, chosen.action)) if published or others else None


def build_index(task: Benchmarks, folder: Path) -> dict[str, Any]:
    """Write the index, and the certificate as it is before a document was looked at."""
    key = inspectors.key_of(task.key)
    evaluations: list[Evaluation] = [items.published(name, Path(path)) for name, path in task.published]
    evaluations += [items.read(name, [Path(path) for path in paths]) for name, paths in task.others]
    # Items are scrubbed as documents are, or what was replaced there would not be found.
    index = Index.build(evaluations, scrub=lambda text: scrub(text, key=key).text)
    index.save(folder / INDEX)
    (folder / CERTIFICATE).write_text(json.dumps(certify(evaluations, index, Found(), task.action)), "utf-8")
    return {"items": len(index.names_I), "benchmarks": list(index.benchmarks)}


# ---- classifiers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """Train from sources of two kinds. `subwords` where single words decide, as with what offends."""

    name: str
    positive: Sequence[Source]
    negative: Sequence[Source]
    subwords: bool
    key: str | None
    extract: Extract


def train_classifier(task: Classifier, folder: Path) -> dict[str, Any]:
    """Write the model and its report. Raises ConfigError where there are too few documents of a kind."""
    sample = Sample()
    for positive, chosen in ((True, task.positive), (False, task.negative)):
        for source in chosen:
            sample.add(((text, positive) for text, _ in texts(source, task.key, task.extract)), sources.label(source))
    try:
        trained = train(split(sample), subwords=task.subwords)
    except ValueError as error:
        raise ConfigError(f"curate.{task.name}: no classifier can be trained: {error}: name more sources") from error
    (folder / MODEL).write_bytes(trained.model.dump())
    (folder / REPORT).write_text(json.dumps(trained.report), "utf-8")
    return {"accuracy": trained.report["held_out"]["accuracy"]}


# ---- limits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Take limits and stop words of each language of which there are enough documents."""

    chosen: Sequence[Source]
    key: str | None
    extract: Extract


def take_limits(task: Reference, folder: Path) -> dict[str, Any]:
    """Write the limits. Raises ConfigError where no language has enough documents."""
    by_language: dict[str, list[str]] = {}
    size: Counter[str] = Counter()
    read = (found for source in task.chosen for found in texts(source, task.key, task.extract))
    for text, language in read:
        if size[language] < MOST_REFERENCE:
            by_language.setdefault(language, []).append(text)
            size[language] += len(text)
        if size.total() >= MOST_REFERENCES:
            break
    found: dict[str, Calibrated] = {}
    for language, of_language in sorted(by_language.items()):
        if len(of_language) >= calibrate.FEWEST_DOCUMENTS:
            stop_words = calibrate.find_stop_words(of_language)
            measured = [
                signals.measure(Tokens.of(batch), [language] * len(batch), {language: stop_words})
                for batch in batched(of_language, len, _BATCH_CHARACTERS)
            ]
            columns = {name: np.concatenate([one[name] for one in measured]) for name in signals.COLUMNS}
            found[language] = calibrate.calibrate(columns, language, stop_words)
    if not found:
        counts = ", ".join(f"{language} {len(one)}" for language, one in sorted(by_language.items()))
        raise ConfigError(
            f"curate.reference holds too few documents of every language ({counts or 'none at all'}): limits need "
            f"{calibrate.FEWEST_DOCUMENTS} or more of one"
        )
    (folder / CALIBRATED).write_text(calibrate.dump(found), "utf-8", newline="\n")
    return {"languages": {language: one.documents for language, one in found.items()}}


def load_limits(path: Path) -> dict[str, Calibrated]:
    """Limits that `take_limits` wrote. Raises DataError where the file holds none."""
    try:
        return calibrate.load(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"the limits in {path} cannot be used ({error}): correct the path, or take them again"
        ) from None


def texts(source: Source, key: str | None, within: Extract) -> Iterator[tuple[str, str]]:
    """The texts of a source as curation sees them, without personal data, and their languages."""
    apart, secret = of_this_process(within.seconds, within.memory_bytes), inspectors.key_of(key)
    taken = 0
    good = (record for record in sources.read(source, within.largest_bytes) if not record.reason)
    for chunk in chunks(good):
        for outcome in apart.read_all(chunk):
            if outcome.extracted is not None and outcome.extracted.text:
                language, _ = identify(outcome.extracted.text)
                yield scrub(outcome.extracted.text, language, secret).text, language
                taken += len(outcome.extracted.text.encode())
                if source.limit_bytes is not None and taken >= source.limit_bytes:
                    return

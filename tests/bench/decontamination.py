"""How surely benchmarks are kept out: real items in real documents, found again, and how much else is taken for one.

Half of the items of each benchmark are indexed. Of these some are planted, each in every way of `planting.py`, in a
document of its own. What must not be found: items of the other half, which are of the same topics and words, unless
their question is also one of the first half; parts of questions that are indexed, and the passages they ask about.
Recall and precision are of documents. Precision is what it would be if as many held an item, in any way but "far
apart", as hold one that must not be found. "far apart" has no bar: a question that anybody may ask proves nothing by
itself. In how many documents of the corpus as they are something is found stands in the details: there is no telling
which of these are wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batched import batched
from data_pipeline.decontaminate import items
from data_pipeline.decontaminate.index import Index
from data_pipeline.decontaminate.items import Evaluation, Item
from data_pipeline.decontaminate.match import CLUSTER, RUN, match
from data_pipeline.signals.tokens import Tokens
from tests import planting
from tests.bench import corpus
from tests.bench.loader import ONE_THREAD, Contestant, Failed, own_environment, run_python
from tests.bench.report import Report, Row, compare

DATATROVE = Contestant("datatrove", "tests.bench.peers.datatrove_ngrams", own_environment("datatrove"), "datatrove")

BARS = {"verbatim": 0.98, "re-cased": 0.97, "re-wrapped": 0.98, "apart": 0.90}
PRECISION = 0.99
SPEED = 10e6  # characters a second and core where nothing matches
_LEAST_QUESTION = 15  # characters
_BATCH, _BATCHES = 1_000_000, 40  # characters, and how often so many
_PEER_DOCUMENTS = 1500  # that datatrove is shown
_DOCUMENT = range(1500, 6000)  # characters of a document in which is planted


def bench(runs: Path, options: Sequence[str]) -> Report:
    """All figures of decontamination."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench decontamination", description=__doc__)
    parser.add_argument("--items", type=int, default=100, help="items of each benchmark that are planted in each way")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--show", action="store_true", help="print what was missed and what was taken for an item")
    chosen = parser.parse_args(options)
    folder, draw = Path(os.environ["GEMCUTTER_BENCHMARKS"]), random.Random(chosen.seed)
    evaluations = [items.published(name, folder / name) for name in items.LAYOUTS]
    halves = [_halves(evaluation, draw) for evaluation in evaluations]
    texts = [text.text for text in corpus.every_text(Path(os.environ["GEMCUTTER_CORPUS"]))]
    report = Report("decontamination", {"items a benchmark": chosen.items, "seed": chosen.seed})
    index = Index.build([indexed for indexed, _ in halves])
    planted = plant(halves, [text for text in texts if len(text) in _DOCUMENT], chosen.items, draw)
    hits = find(index, planted, show=chosen.show)
    report.rows += found(planted, hits, report)
    report.rows += speed(evaluations, texts, runs, report)
    report.rows += datatrove(DATATROVE, halves, planted, hits[CLUSTER], runs, report)
    return report


def _halves(evaluation: Evaluation, draw: random.Random) -> tuple[Evaluation, list[Item]]:
    """Items to index, and those that are not; questions of both are none of the latter."""
    shuffled = draw.sample(evaluation.items, len(evaluation.items))
    half = shuffled[: len(shuffled) // 2]
    # MBPP has its items twice, the second time with better words under the same number.
    asked = {_plain(form) for item in half for form in item.forms} | {_number(item) for item in half}
    return replace(evaluation, items=half), [
        item for item in shuffled[len(half) :] if not asked & {_number(item), *(_plain(form) for form in item.forms)}
    ]


def _number(item: Item) -> str:
    return item.name if item.benchmark != "mbpp" else item.name.rpartition(":")[2]


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


Planted = list[tuple[str, str, str, str]]  # benchmark, way, item, text


def plant(
    halves: Sequence[tuple[Evaluation, list[Item]]], documents: Sequence[str], count: int, draw: random.Random
) -> Planted:
    """Documents with items in them, and documents with what is none: way `other` and `part`."""
    planted: Planted = []
    for indexed, others in halves:
        chosen = draw.sample(indexed.items, min(count, len(indexed.items)))
        for way, put in planting.WAYS.items():
            planted += [(indexed.benchmark, way, i.name, put(i, draw.choice(documents), draw)) for i in chosen]
        asked = [_plain(form) for item in indexed.items for form in item.forms if len(form) > _LEAST_QUESTION]
        for item in draw.sample(others, min(2 * count, len(others))):
            whole = _plain(f"{item.forms[0]} {' '.join((*item.answers, *item.others))}")
            if any(question in whole for question in asked):
                continue  # it holds the whole of a question that is indexed
            planted.append(
                (indexed.benchmark, "other", item.name, planting.verbatim(item, draw.choice(documents), draw))
            )
        for item in draw.sample(indexed.items, min(2 * count, len(indexed.items))):
            planted.append((indexed.benchmark, "part", item.name, planting.partly(item, draw.choice(documents), draw)))
    return planted


def find(index: Index, planted: Planted, *, show: bool) -> dict[int, np.ndarray]:
    """Which documents hold a cluster, and which a run."""
    hits = {kind: np.zeros(len(planted), bool) for kind in (CLUSTER, RUN)}
    for first in range(0, len(planted), 200):
        batch = planted[first : first + 200]
        spans = match(index, Tokens.of([text for _, _, _, text in batch]))
        for d in range(len(batch)):
            for kind in hits:
                hits[kind][first + d] = (spans.kind_N[spans.documents_D1[d] : spans.documents_D1[d + 1]] == kind).any()
        if show:
            _show(index, batch, spans)
    return hits


def found(planted: Planted, hits: dict[int, np.ndarray], report: Report) -> list[Row]:
    """Recall of each way and precision, over all benchmarks and of each."""
    rows = []
    runs, rates = _rates(planted, hits[RUN]), _rates(planted, hits[CLUSTER])
    report.details["13-grams"] = runs
    report.details["benchmarks"] = rates
    for way, rate in rates["all"].items():
        bar = PRECISION if way == "precision" else BARS.get(way)
        name = "precision" if way == "precision" else f"recall, {way}"
        rows.append(Row(name, rate, {"13-grams": runs["all"][way]}, None, bar, None if bar is None else rate >= bar))
    for benchmark, rate in rates.items():
        print(f"{benchmark:16}", *(f"{way} {value:.3f}" for way, value in rate.items()), sep="  ")
    return rows


def _rates(planted: Planted, hits: np.ndarray) -> dict[str, dict[str, float]]:
    """benchmark, and all -> recall of each way, and precision: where as many documents hold an item as hold none."""
    benchmarks, ways = np.array([p[0] for p in planted]), np.array([p[1] for p in planted])
    rates: dict[str, dict[str, float]] = {}
    for benchmark in (*dict.fromkeys(benchmarks.tolist()), "all"):
        own = np.ones(len(planted), bool) if benchmark == "all" else benchmarks == benchmark
        recall = {way: float(hits[own & (ways == way)].mean()) for way in planting.WAYS if (own & (ways == way)).any()}
        right = float(np.mean([recall[way] for way in BARS if way in recall]))
        wrong = float(hits[own & np.isin(ways, ("other", "part"))].mean())
        rates[benchmark] = {**recall, "precision": right / (right + wrong) if right + wrong else 1.0}
    return rates


def _show(index: Index, batch: Planted, spans: Any) -> None:
    for d, (benchmark, way, item, text) in enumerate(batch):
        own = range(spans.documents_D1[d], spans.documents_D1[d + 1])
        clusters = [n for n in own if spans.kind_N[n] == CLUSTER]
        if way in BARS and not clusters:
            print(f"MISSED {way} {benchmark} {item}")
        if way in ("other", "part"):
            for n in clusters[:1]:
                where = index.benchmarks[spans.benchmark_N[n]], index.names_I[spans.item_N[n]]
                print(f"WRONG {way} {benchmark} {item}: {where} {spans.score_N[n]:.2f}", end=" ")
                print(repr(text[spans.start_N[n] : spans.stop_N[n]]), spans.answered_N[n])


def speed(evaluations: Sequence[Evaluation], texts: Sequence[str], runs: Path, report: Report) -> list[Row]:
    """Characters a second in one process, of documents as they are, tokens given; what the index of all items costs."""
    began = time.perf_counter()
    index = Index.build(evaluations)
    built = time.perf_counter() - began
    runs.mkdir(parents=True, exist_ok=True)
    index.save(file := runs / "decontamination.index")
    index = Index.open(file)
    tokenised = [Tokens.of(batch) for batch in itertools.islice(batched(texts, len, _BATCH), _BATCHES)]
    match(index, tokenised[0])
    began = time.process_time()  # of one thread, whatever else the machine does
    spans = [match(index, tokens) for tokens in tokenised]
    seconds = time.process_time() - began
    characters = sum(tokens.text_C.size for tokens in tokenised)
    report.details["speed"] = {
        "characters": characters,
        "items": len(index.names_I),
        "documents with a cluster": sum(len({*_documents(s, CLUSTER)}) for s in spans),
        "documents with a run": sum(len({*_documents(s, RUN)}) for s in spans),
        "documents": sum(s.documents_D1.size - 1 for s in spans),
    }
    rate = characters / seconds
    return [
        Row("characters/s of one core", rate, {}, None, SPEED, rate >= SPEED),
        compare("seconds to build the index", built, {}),
        compare("MB of the index", file.stat().st_size / 1e6, {}),
    ]


def _documents(spans: Any, kind: int) -> list[int]:
    documents = np.repeat(np.arange(spans.documents_D1.size - 1), np.diff(spans.documents_D1))
    return documents[spans.kind_N == kind].tolist()


def datatrove(
    peer: Contestant, halves: Sequence[tuple[Evaluation, list[Item]]], planted: Planted, ours: np.ndarray, runs: Path,
    report: Report,
) -> list[Row]:  # fmt: skip
    """The 12-gram decontaminator of datatrove on some of the same documents, and the same items; tokens made."""
    step = -(-len(planted) // _PEER_DOCUMENTS)
    planted, ours = planted[::step], ours[::step]
    work = runs / "decontamination"
    work.mkdir(parents=True, exist_ok=True)
    questions = [
        {"query": item.forms[0], "label": item.answers[0] if item.answers else ""}
        for indexed, _ in halves for item in indexed.items
    ]  # fmt: skip
    (work / "items.json").write_text(json.dumps(questions))
    (work / "documents.json").write_text(json.dumps([text for _, _, _, text in planted]))
    try:
        told = json.loads(run_python(peer.python, ["-m", peer.module, str(work)], ONE_THREAD).splitlines()[-1])
    except Failed as error:
        report.errors[peer.name] = str(error)
        return []
    report.versions["datatrove"] = told["version"]
    rates, own = _rates(planted, np.array(told["hits"], bool)), _rates(planted, ours)
    report.details["datatrove"] = {"documents": len(planted), "seconds": told["seconds"], **rates}
    rows = [
        compare(f"{way}, some documents", own["all"][way], {"datatrove": rate}) for way, rate in rates["all"].items()
    ]
    characters = sum(len(text) for _, _, _, text in planted)
    began = time.perf_counter()
    index = Index.build([indexed for indexed, _ in halves])
    report.details["datatrove"]["seconds to build"] = {"ours": time.perf_counter() - began, "datatrove": told["built"]}
    began = time.perf_counter()
    find(index, planted, show=False)
    seconds = time.perf_counter() - began
    speeds = characters / seconds, {"datatrove": characters / told["seconds"]}
    return [*rows, compare("characters/s, some documents", *speeds)]

"""What was kept out of the training data is known where a checkpoint is scored, from the certificate of its data."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.exits import DATA, DONE, DataError
from conf.schema import Job
from data_pipeline.decontaminate import actions, certificate, items
from data_pipeline.decontaminate.index import Index
from data_pipeline.decontaminate.match import match
from data_pipeline.reader import Shards
from data_pipeline.signals.tokens import Tokens
from data_pipeline.tokenize_text import tokenize
from tests.trainer.conftest import Corpus, documents, write_curated
from trainer import checkpoint
from trainer.export.import_job import commit
from trainer.lineage import kept_out

ROWS = 12  # of a step
PIQA, NO_HELD_OUT = "evaluate.tasks=[piqa]", "data.held_out=null"

# goal, right, wrong
ITEMS = [
    ("How do you dry a wet sail on the lee shore of Tarn before the evening tide?", "Hang it up.", "Fold it."),
    ("How do you sharpen the dull chisel of a boat builder who has lost his stone?", "Use a brick.", "Use wax."),
    ("How do you quiet the squeaky hinge of a lighthouse door without any oil?", "Rub in wax.", "Rub in sand."),
    ("How do you carry a full bucket across the rope bridge above the upper mill?", "Step slowly.", "Swing it."),
]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The invented items as piqa and arc_easy are published."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for name in ("piqa", "arc_easy"):
        (folder / name).mkdir()
    rows = [json.dumps({"goal": goal, "sol1": right, "sol2": wrong}) for goal, right, wrong in ITEMS]
    (folder / "piqa/valid.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "piqa/valid-labels.lst").write_text("0\n" * len(ITEMS))
    docs = [
        {"id": f"x{n}", "query": f"Question: {goal}\nAnswer:", "choices": [right, wrong], "gold": 0}
        for n, (goal, right, wrong) in enumerate(ITEMS)
    ]
    lines = [json.dumps({"doc": doc, "doc_id": n}) for n, doc in enumerate(docs)]
    dump = gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
    (folder / "arc_easy/olmes_test_rc_5shot_requests.jsonl.gz").write_bytes(dump)
    return folder


def decontaminated(texts: list[str], evaluation: items.Evaluation) -> tuple[list[str], dict[str, Any]]:
    """The texts that stay, and the certificate."""
    index, found = Index.build([evaluation]), certificate.Found()
    spans = match(index, Tokens.of(texts))
    found.add(index, spans)
    of = [range(start, stop) for start, stop in zip(spans.documents_D1, spans.documents_D1[1:], strict=False)]
    where = [[(int(spans.start_N[n]), int(spans.stop_N[n])) for n in numbers] for numbers in of]
    kept = [text for text, each in zip(texts, where, strict=True) if not actions.decide(text, each, "drop")[0]]
    return kept, certificate.certify([evaluation], index, found, "drop")


def curated(folder: Path, texts: list[str], decontamination: dict[str, Any] | None) -> None:
    write_curated(folder, texts)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"decontamination": decontamination}))


def tokenized(folder: Path, corpus: Corpus) -> Corpus:
    """Token shards of folder/text, with the tokenizer of another corpus."""
    job = Job()
    job.tokenize.input, job.tokenize.output = str(folder / "text"), str(folder / "tokens")
    job.tokenize.held_out, job.tokenize.shard_tokens, job.tokenize.block_documents = 0.1, 4000, 16
    shutil.copyfile(corpus.folder / "tokenizer.model", folder / "tokenizer.model")
    job.tokenizer.model = str(folder / "tokenizer.model")
    job.data.sequence_length, job.data.packing, job.data.window_blocks = 64, "pad", 2
    tokenize(job)
    return Corpus(folder)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, benchmarks: Path) -> Corpus:
    """Documents out of which piqa was kept, of whose items one was found."""
    folder = tmp_path_factory.mktemp("certified")
    goal, right, _ = ITEMS[1]
    texts = [*documents(150), f"A page from a web site of boat builders.\n\n{goal}\n\n{right}"]
    kept, told = decontaminated(texts, items.published("piqa", benchmarks / "piqa"))
    assert kept == texts[:-1]
    curated(folder / "text", kept, told)
    return tokenized(folder, corpus)


def stated(corpus: Corpus) -> dict[str, Any]:
    said: dict[str, Any] = json.loads((corpus.folder / "text/manifest.json").read_bytes())["decontamination"]
    return said


@pytest.fixture
def evaluate(lab, command, one_thread: None, benchmarks: Path):
    """Gives (scores by task, what was said) of a run."""

    def run(run_id: str, *changes: str, folder: Path = benchmarks) -> tuple[dict[str, Any], str]:
        code, _, said = command("evaluate", f"run={run_id}", f"evaluate.benchmarks={folder}", *changes, NO_HELD_OUT)
        assert code == DONE, said
        return json.loads(max((lab.folder / "runs" / run_id / "evals").iterdir()).read_text())["tasks"], said

    return run


def answers(tasks: dict[str, Any]) -> dict[str, str]:
    return {task: result["decontaminated"] for task, result in tasks.items()}


def test_an_evaluation_says_what_was_kept_out_wherever_the_data_are(
    lab, certified: Corpus, benchmarks: Path, evaluate, tmp_path: Path
) -> None:
    copy = certified.copy(tmp_path / "copy")
    lab.train("kept", "steps=2", *copy.overrides)
    shutil.rmtree(copy.folder)
    tasks, said = evaluate("kept")
    assert answers(tasks) == {"piqa": "yes", "arc_easy": "no"}
    assert tasks["piqa"]["contaminated_fraction"] == 0.25
    assert tasks["piqa"]["certificates"] == [stated(certified)["sha256"]]
    assert (tasks["arc_easy"]["contaminated_fraction"], tasks["arc_easy"]["certificates"]) == (None, [])
    assert said.count("piqa:") == 1
    assert "arc_easy: no certificate says that it was kept out of all training data" in said

    other = tmp_path / "benchmarks"
    shutil.copytree(benchmarks, other)
    (other / "piqa/valid-labels.lst").write_text("1\n" * len(ITEMS))  # no text: nothing that could be learnt
    assert answers(evaluate("kept", PIQA, folder=other)[0]) == {"piqa": "yes"}
    rows = (other / "piqa/valid.jsonl").read_text()
    (other / "piqa/valid.jsonl").write_text(rows.replace("lee shore", "weather shore"))
    tasks, said = evaluate("kept", PIQA, folder=other)
    assert answers(tasks) == {"piqa": "other files"}
    assert "piqa: certificates say that it was kept out of the training data, but by other files than those" in said


def test_data_without_a_certificate_were_not_kept_clean(lab, evaluate) -> None:
    lab.train("plain", "steps=1")
    tasks, said = evaluate("plain")
    assert answers(tasks) == {"piqa": "no", "arc_easy": "no"}
    assert said.count("no certificate says that it was kept out of all training data") == 2


def test_all_data_of_a_mixture_count_from_the_step_that_first_reads_them(
    lab, corpus: Corpus, certified: Corpus, evaluate
) -> None:
    plain = corpus.folder / "tokens/manifest.json"
    lab.train(
        "mixed", "steps=4", "checkpoint.every=2", *certified.overrides,
        f"data.mixture=[{{}},{{from_sample:{2 * ROWS},manifest:{plain}}}]",
    )  # fmt: skip
    assert answers(evaluate("mixed", PIQA, "step=2")[0]) == {"piqa": "yes"}
    tasks, _ = evaluate("mixed", PIQA)
    assert answers(tasks) == {"piqa": "no"}
    assert tasks["piqa"]["certificates"] == [stated(certified)["sha256"]]


def test_weights_that_a_run_begins_with_count(lab, certified: Corpus, command, evaluate) -> None:
    """Those of a run have learnt from its data, before and after a resume; of imported ones nothing is known."""
    lab.train("plain", "steps=1")
    lab.train("kept", "steps=1", *certified.overrides)
    lab.train("later", "steps=1", "init_from=plain", *certified.overrides)
    lab.train("later", "steps=2", "init_from=plain", *certified.overrides)
    assert answers(evaluate("later", PIQA)[0]) == {"piqa": "no"}
    lab.train("still", "steps=1", "init_from=kept", *certified.overrides)
    assert answers(evaluate("still", PIQA)[0]) == {"piqa": "yes"}

    assert command("export", "run=kept", "export.output=out")[0] == DONE
    learnt = json.loads((lab.folder / "out/gemcutter.json").read_text())["provenance"]["learnt_from"]
    assert [each["decontamination"] for each in learnt] == [stated(certified)]
    assert command("import", "pretrained.folder=out", "run_id=in", "backend=cpu", "tracker=none")[0] == DONE
    lab.train("onward", "steps=1", "init_from=in", *certified.overrides)
    lab.train("onward", "steps=2", "init_from=in", *certified.overrides)
    for run_id in ("in", "onward"):
        tasks, said = evaluate(run_id, PIQA)
        assert answers(tasks) == {"piqa": "unknown"}
        assert tasks["piqa"]["unknown"] == "weights were imported"
        assert "piqa: whether it was kept out of the training data is unknown: weights were imported" in said


@pytest.fixture
def forged(lab) -> Callable[[str, str, Callable[[dict[str, Any]], object]], None]:
    """A run whose checkpoint is that of another, but for what it says of its data."""

    def make(run_id: str, of: str, change: Callable[[dict[str, Any]], object]) -> None:
        folder = lab.folder / "runs" / run_id
        shutil.copytree(lab.folder / "runs" / of, folder, ignore=shutil.ignore_patterns("checkpoints"))
        found = checkpoint.find(lab.folder / "runs" / of / "checkpoints")
        weights = {
            name.removeprefix("model."): checkpoint.read_tensor(found, name)
            for name in found.tensors
            if name.startswith("model.")
        }
        change(found.state)
        commit(lab.job(run_id), checkpoint.open_store(folder / "checkpoints"), weights, found.state)

    return make


def test_of_a_checkpoint_of_an_earlier_version_nothing_is_known(lab, forged, evaluate) -> None:
    lab.train("plain", "steps=1")
    forged("earlier", "plain", lambda state: state.pop("learnt_from"))
    tasks, said = evaluate("earlier", PIQA)
    assert answers(tasks) == {"piqa": "unknown"}
    assert "an earlier version trained, which kept no certificates" in said
    lab.train("goes-on", "steps=2", "init_from=earlier")
    assert answers(evaluate("goes-on", PIQA)[0]) == {"piqa": "unknown"}


def test_a_changed_certificate_is_refused_on_the_whole_road(
    lab, corpus: Corpus, certified: Corpus, command, forged, tmp_path: Path
) -> None:
    def change(told: dict[str, Any]) -> dict[str, Any]:
        told["benchmarks"]["arc_easy"] = told["benchmarks"]["piqa"]
        return told

    curated(tmp_path / "text", documents(150), change(stated(certified)))
    with pytest.raises(DataError, match=r"text/manifest\.json: a decontamination certificate .* it was changed"):
        tokenized(tmp_path, corpus)

    copy = certified.copy(tmp_path / "copy")
    path = copy.folder / "tokens/manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest["decontamination"])
    path.write_text(json.dumps(manifest))
    ended = lab.end("changed", "steps=1", *copy.overrides)
    assert ended.code == DATA
    assert "tokens/manifest.json: a decontamination certificate does not have the sha256 it states" in ended.said

    lab.train("kept", "steps=1", *certified.overrides)
    forged("forged", "kept", lambda state: change(state["learnt_from"]["here"][0]["decontamination"]))
    code, _, said = command("evaluate", "run=forged", PIQA, NO_HELD_OUT)
    assert code == DATA
    assert "runs/forged/checkpoints/step-00000000" in said
    assert "it was changed" in said


def test_token_shards_carry_the_certificate_of_their_text(corpus: Corpus, certified: Corpus, tmp_path: Path) -> None:
    """And where there is none, a manifest is what it was before anybody knew of certificates."""
    for name in ("tokens", "tokens/held_out"):
        shards = Shards.open(str(certified.folder / name / "manifest.json"))
        assert shards.decontamination == stated(certified)
        assert Shards.open(str(corpus.folder / name / "manifest.json")).decontamination is None
    curated(tmp_path / "text", documents(150), None)
    without = json.loads((tokenized(tmp_path, corpus).folder / "tokens/manifest.json").read_bytes())
    assert "decontamination" not in without
    assert set(without) == {
        "format", "tokens", "tokenizer_sha256", "vocab_size", "config", "lineage", "totals", "sources", "shards",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "answer"),
    [
        (["yes"], "yes"),
        (["yes", "yes"], "yes"),
        (["yes", "other files"], "other files"),
        (["other files", "no"], "no"),
        (["yes", "no"], "no"),
        (["yes", "unknown"], "unknown"),
        (["no", "unknown"], "unknown"),
    ],
)
def test_the_worst_of_all_data_decides(entries: list[str], answer: str) -> None:
    def told(digest: str, fraction: float) -> dict[str, Any]:
        of = {"files": {"valid.jsonl": digest}, "contaminated_fraction": fraction}
        return {"sha256": f"of {digest}", "benchmarks": {"piqa": of}}

    kinds = {
        "yes": {"decontamination": told("a", 0.1)},
        "other files": {"decontamination": told("b", 0.3)},
        "no": {"decontamination": None},
        "unknown": {"unknown": "nobody knows"},
    }
    said = kept_out([kinds[entry] for entry in entries], "piqa", {"piqa/valid.jsonl": "a"})
    assert said["decontaminated"] == answer
    assert said["unknown"] == ("nobody knows" if answer == "unknown" else None)
    named = [kinds[entry]["decontamination"] for entry in entries if entry in ("yes", "other files")]
    fractions = [each["benchmarks"]["piqa"]["contaminated_fraction"] for each in named]
    assert said["contaminated_fraction"] == max(fractions, default=None)
    assert said["certificates"] == sorted({each["sha256"] for each in named})


def test_who_trains_and_evaluates_needs_nothing_that_finds_benchmarks() -> None:
    program = """
import sys
sys.modules["numba"] = None  # as if it were not installed
import trainer.evaluate.job, trainer.train, data_pipeline.tokenize_text
from data_pipeline.decontaminate import certificate
assert certificate.covers(None, "piqa") == "no"
"""
    subprocess.run([sys.executable, "-c", program], check=True)

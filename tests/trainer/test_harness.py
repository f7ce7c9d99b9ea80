"""Promises of task scores: equal to scoring one by one, to transformers and to known answers, whatever the batches."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.exits import ConfigError, DataError
from conf.schema import Evaluate, Model
from data_pipeline.tokenizer import Tokenizer, train
from trainer.evaluate.score import score
from trainer.evaluate.tasks import files
from trainer.model import Gemma, build_config, init_weights

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SIZES = {1: "gemma_2b", 2: "gemma2_2b", 3: "gemma3_4b"}

# goal, right, wrong: right answers cannot be told from wrong ones but by having learnt them.
ITEMS = [
    ("How do you dry a wet sail?", "Hang it in the wind.", "Fold it into the chest."),
    ("How do you sharpen a dull chisel?", "Draw it over a stone.", "Draw it over a sponge."),
    ("How do you keep bread fresh?", "Wrap it in a cloth.", "Leave it on the roof."),
    ("How do you quiet a squeaky hinge?", "Rub it with candle wax.", "Rub it with dry sand."),
    ("How do you cross a frozen pond?", "Walk around the shore.", "Jump on the middle."),
    ("How do you find north at night?", "Look for the pole star.", "Look for the full moon."),
    ("How do you carry a full bucket?", "Step slowly and evenly.", "Swing it over the head."),
    ("How do you mend a torn kite?", "Glue paper on the hole.", "Cut the hole larger."),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    text = "\n".join(f"Question: {goal}\nAnswer: {right} {wrong}" for goal, right, wrong in ITEMS)
    path.write_bytes(train([text] * 20, 480))
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_model: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_model)


def random_model(generation: int, vocab_size: int) -> Gemma:
    """Every parameter drawn, norms too, and with large logits, so that soft caps and windows matter."""
    shape = {"num_layers": 7, "d_model": 32, "d_ff": 56, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    shape |= {"vocab_size": 512} | ({"window": 10} if generation > 1 else {})
    model = Gemma(build_config(Model(size=SIZES[generation], **shape), vocab_size))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def lm_of(model: Gemma, tokenizer: Tokenizer, batch_tokens: int = 4096, max_length: int = 512) -> Any:
    from trainer.evaluate.harness import GemmaLM

    return GemmaLM(model, tokenizer, batch_tokens, max_length)


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, 0) for args in arguments]


def pairs() -> list[tuple[str, str]]:
    """Every question with every answer, an empty context, and a context that ends in blanks."""
    asked = [(f"Question: {goal}\nAnswer:", f" {answer}") for goal, *answers in ITEMS for answer in answers]
    return [*asked, ("", "Hang it in the wind."), ("Wrap it  ", "in a cloth."), ("Step", " slowly" * 30)]


def log_p(model: Gemma, ids: list[int], scored: int, pieces: int) -> tuple[float, bool]:
    """Of the last `scored` of some ids: the sum of log p in float64, and whether each is the likeliest."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(tokens, torch.ones_like(tokens), torch.arange(len(ids))[None])[0, :, :pieces].double()
    predicted = logits.log_softmax(dim=-1)[-scored - 1 : -1]
    targets = tokens[0, -scored:]
    return predicted.gather(1, targets[:, None]).sum().item(), bool((predicted.argmax(dim=1) == targets).all())


def expected(model: Gemma, tokenizer: Tokenizer, context: str, continuation: str) -> tuple[float, bool]:
    bare = context.rstrip()
    whole = [tokenizer.bos, *tokenizer.encode(context + continuation)]
    return log_p(model, whole, len(whole) - 1 - len(tokenizer.encode(bare)), tokenizer.vocab_size)


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_log_likelihoods_equal_scoring_one_by_one(generation: int, tokenizer: Tokenizer) -> None:
    model = random_model(generation, tokenizer.vocab_size)
    scores = lm_of(model, tokenizer).loglikelihood(instances("loglikelihood", *pairs()))
    for pair, (value, greedy) in zip(pairs(), scores, strict=True):
        wanted, wanted_greedy = expected(model, tokenizer, *pair)
        assert value == pytest.approx(wanted, rel=1e-5)
        assert greedy == wanted_greedy


@given(batch_tokens=st.integers(1, 3000), order=st.permutations(range(len(pairs()))))
@settings(max_examples=15, deadline=None)
def test_scores_do_not_depend_on_batches_or_order(batch_tokens: int, order: list[int], tokenizer: Tokenizer) -> None:
    model = random_model(3, tokenizer.vocab_size)
    requests = instances("loglikelihood", *pairs())
    reference = lm_of(model, tokenizer, batch_tokens=1).loglikelihood(requests)
    lm = lm_of(model, tokenizer, batch_tokens)
    sizes = []
    compute = lm._logits
    lm._logits = lambda rows: sizes.append((len(rows), max(map(len, rows)))) or compute(rows)
    scores = lm.loglikelihood([requests[i] for i in order])
    for i, (value, greedy) in zip(order, scores, strict=True):
        assert value == pytest.approx(reference[i][0], rel=1e-5)
        assert greedy == reference[i][1]
    assert all(rows == 1 or rows * length <= batch_tokens for rows, length in sizes)


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_scores_equal_those_of_the_export_in_transformers(
    generation: int, tokenizer_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.export import export_hf

    model = random_model(generation, tokenizer.vocab_size)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    export_hf(model.config, weights, tokenizer_model, tokenizer.vocab_size, tmp_path / "export", "fp32", {})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export", attn_implementation="eager")
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    asked = [pair for pair in pairs() if pair[0].strip() == pair[0] != ""]
    scores = lm_of(model, tokenizer).loglikelihood(instances("loglikelihood", *asked))
    for (context, continuation), (value, _) in zip(asked, scores, strict=True):
        ids = their_tokenizer(context + continuation, return_tensors="pt").input_ids
        scored = ids.shape[1] - len(their_tokenizer(context).input_ids)
        with torch.no_grad():
            predicted = theirs(ids).logits[0].log_softmax(dim=-1)[-scored - 1 : -1]
        wanted = predicted.gather(1, ids[0, -scored:, None]).sum().item()
        assert value == pytest.approx(wanted, rel=1e-5, abs=1e-4)


def test_every_row_starts_with_the_only_bos(tokenizer: Tokenizer) -> None:
    lm = lm_of(random_model(3, tokenizer.vocab_size), tokenizer, max_length=24)
    rows: list[list[int]] = []
    compute = lm._logits
    lm._logits = lambda batch: rows.extend(batch) or compute(batch)
    text = " ".join(right for _, right, _ in ITEMS)
    lm.loglikelihood(instances("loglikelihood", *(p for p in pairs() if len(tokenizer.encode(p[1])) <= 24)))
    lm.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    lm.generate_until(instances("generate_until", (text, {"max_gen_toks": 3})))
    assert len(rows) > 20
    assert all(row[0] == tokenizer.bos and row.count(tokenizer.bos) == 1 for row in rows)
    assert all(tokenizer.eos not in row for row in rows)
    assert max(map(len, rows)) == 24


def test_a_long_context_loses_its_left_end_but_not_bos(tokenizer: Tokenizer) -> None:
    model = random_model(3, tokenizer.vocab_size)
    context, continuation = "Step slowly. " * 20 + "Answer:", " Hang it in the wind."
    ids, answer = tokenizer.encode(context + continuation), tokenizer.encode(continuation)
    (value, _), *_ = lm_of(model, tokenizer, max_length=30).loglikelihood(
        instances("loglikelihood", (context, continuation))
    )
    kept = [tokenizer.bos, *ids[-30:]]  # 30 inputs; the last token is no input
    assert value == pytest.approx(log_p(model, kept, len(answer), tokenizer.vocab_size)[0], rel=1e-5)
    with pytest.raises(ConfigError, match=r"3 positions .*data\.sequence_length"):
        lm_of(model, tokenizer, max_length=3).loglikelihood(instances("loglikelihood", ("Step", continuation * 3)))


def test_rolling_log_likelihood_scores_every_token_once(tokenizer: Tokenizer) -> None:
    model = random_model(3, tokenizer.vocab_size)
    text = " ".join(right for _, right, _ in ITEMS)
    ids = tokenizer.encode(text)
    whole = log_p(model, [tokenizer.bos, *ids], len(ids), tokenizer.vocab_size)[0]
    request = instances("loglikelihood_rolling", (text,))
    assert lm_of(model, tokenizer).loglikelihood_rolling(request) == [pytest.approx(whole, rel=1e-5)]
    cut = log_p(model, [tokenizer.bos, *ids[:19]], 19, tokenizer.vocab_size)[0]
    for start in range(19, len(ids), 19):
        end = min(start + 19, len(ids))  # the last window reaches back as far as 20 inputs allow
        cut += log_p(model, [tokenizer.bos, *ids[end - 20 : end]], end - start, tokenizer.vocab_size)[0]
    assert len(ids) % 19
    assert lm_of(model, tokenizer, max_length=20).loglikelihood_rolling(request) == [pytest.approx(cut, rel=1e-5)]


# A model that knows the answers, and files that ask for them.


def questions() -> list[str]:
    return [f"Question: {goal}\nAnswer:" for goal, _, _ in ITEMS]


@pytest.fixture(scope="module")
def learned(tokenizer: Tokenizer) -> Gemma:
    """A Gemma trained on questions and right answers until it holds every answer for near certain."""
    shape = {"num_layers": 2, "d_model": 64, "d_ff": 128, "num_heads": 4, "num_kv_heads": 1, "head_dim": 16}
    model = Gemma(build_config(Model(size="tiny", **shape), tokenizer.vocab_size))
    init_weights(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rows = [
        tokenizer.encode_document(f"{q} {right}").tolist() for q, (_, right, _) in zip(questions(), ITEMS, strict=True)
    ]
    length = max(map(len, rows)) - 1
    tokens_BS, targets_BS = torch.zeros(8, length, dtype=torch.int64), torch.zeros(8, length, dtype=torch.int64)
    segments_BS = torch.zeros(8, length, dtype=torch.int32)
    for line, row in enumerate(rows):
        tokens_BS[line, : len(row) - 1] = torch.tensor(row[:-1])
        targets_BS[line, : len(row) - 1] = torch.tensor(row[1:])
        segments_BS[line, : len(row) - 1] = 1
    weights_BS, positions_BS = (segments_BS > 0).float(), torch.arange(length).expand(8, -1)
    for _ in range(120):
        loss = model(tokens_BS, segments_BS, positions_BS, targets_BS, weights_BS) / weights_BS.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def write_piqa(folder: Path, wrong: set[int], pack: bool = False) -> Path:
    """The invented items in PIQA's format; of the items in `wrong` the label is the wrong answer's."""
    rows, labels = [], []
    for index, (goal, right, false) in enumerate(ITEMS):
        first, second = (right, false) if index % 2 else (false, right)
        rows.append(json.dumps({"goal": goal, "sol1": first, "sol2": second}) + "\n")
        labels.append(f"{(1 - index % 2) ^ (index in wrong)}\n")
    (folder / "piqa").mkdir(parents=True, exist_ok=True)
    if pack:
        (folder / "piqa/valid.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    else:
        (folder / "piqa/valid.jsonl").write_text("".join(rows))
    (folder / "piqa/valid-labels.lst").write_text("".join(labels))
    return folder


def write_arc_easy(folder: Path, wrong: set[int]) -> Path:
    """The invented items as a dump of requests: one line per choice, three to five choices, then unconditional ones."""
    lines = []
    for index, (question, (_, right, false)) in enumerate(zip(questions(), ITEMS, strict=True)):
        choices = [false, *(f"{false} {n}" for n in range(1 + index % 3))]
        gold = index % len(choices)
        choices.insert(gold, right)
        doc = {"id": f"x{index}", "query": question, "choices": choices}
        doc["gold"] = (gold + 1) % len(choices) if index in wrong else gold
        for number in range(len(choices)):
            lines += [{"doc": doc, "idx": number, "doc_id": index}, {"doc": doc, "doc_id": 1_000_000 + index}]
    (folder / "arc_easy").mkdir(parents=True, exist_ok=True)
    path = folder / "arc_easy/olmes_test_rc_5shot_requests.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return folder


def asked(benchmarks: Path | str | None, **changes: Any) -> Evaluate:
    return dataclasses.replace(
        Evaluate(benchmarks=None if benchmarks is None else str(benchmarks), batch_tokens=512), **changes
    )


@pytest.mark.parametrize("wrong", [set(), {1, 4, 6}, set(range(8))])
def test_a_model_that_knows_the_answers_gets_exactly_that_accuracy(
    wrong: set[int], learned: Gemma, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("scoring reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    write_arc_easy(write_piqa(tmp_path, wrong, pack=bool(wrong)), wrong)
    result = score(learned, tokenizer, asked(tmp_path), None, 128)
    share = 1 - len(wrong) / 8
    stderr = pytest.approx((share * (1 - share) / 7) ** 0.5)
    common = {"metric": "acc", "value": share, "stderr": stderr, "items": 8, "few_shot": 0, "version": 1.0}
    assert result["tasks"] == {"piqa": common | {"chance": 0.5}, "arc_easy": common | {"chance": 0.25}}
    assert result["skipped"] == {}
    assert result["bits_per_byte"] is None
    assert result["harness"].startswith("lm-eval 0.")
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_limit_takes_the_first_items(learned: Gemma, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_piqa(tmp_path, {3})
    for limit, value in ((1, 1.0), (3, 1.0), (4, 0.75)):
        result = score(learned, tokenizer, asked(tmp_path, tasks=["piqa"], limit=limit), None, 128)
        assert (result["tasks"]["piqa"]["items"], result["tasks"]["piqa"]["value"]) == (limit, value)
        assert (result["tasks"]["piqa"]["stderr"] is None) == (limit == 1)
        assert result["limit"] == limit
    with pytest.raises(ConfigError, match=r"evaluate\.limit=0"):
        score(learned, tokenizer, asked(tmp_path, limit=0), None, 128)


def test_greedy_text_is_the_learned_answer(learned: Gemma, tokenizer: Tokenizer) -> None:
    lm = lm_of(learned, tokenizer, max_length=128)
    whole = lm.generate_until(instances("generate_until", *((q, {"max_gen_toks": 40}) for q in questions())))
    assert whole == [f" {right}" for _, right, _ in ITEMS]
    stopped = lm.generate_until(instances("generate_until", (questions()[0], {"until": ["wind", "in the"]})))
    assert stopped == [" Hang it "]
    assert lm.generate_until(instances("generate_until", (questions()[0], {"until": "it"}))) == [" Hang "]
    with pytest.raises(ConfigError, match="sampling"):
        lm.generate_until(instances("generate_until", ("", {"do_sample": True, "temperature": 0.7})))


def test_prompts_and_metrics_are_those_of_the_harness(tokenizer: Tokenizer) -> None:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml
    from lm_eval.utils import apply_template

    from trainer.evaluate.harness import TASKS

    theirs = Path(lm_eval.tasks.__file__).parent
    for ours_path, theirs_path in (("piqa", "piqa/piqa"), ("arc_easy", "arc/arc_easy")):
        ours, their = (
            load_yaml(path.with_suffix(".yaml"), resolve_func=False)
            for path in (TASKS / ours_path, theirs / theirs_path)
        )
        assert ours["task"] == their["task"]
        assert ours["output_type"] == their["output_type"]
        assert ours["metric_list"] == their["metric_list"]
        assert ours["metadata"]["version"] == their["metadata"]["version"]
        goal = "How do you dry a wet sail?"
        prompt = apply_template(their["doc_to_text"], {"goal": goal, "question": goal})
        assert apply_template(ours["doc_to_text"], {"goal": goal, "query": questions()[0]}) == prompt


def test_the_published_files_load_and_score(learned: Gemma, tokenizer: Tokenizer) -> None:
    folder = os.environ.get("GEMCUTTER_BENCHMARKS")
    if not folder or any(files.missing(task, Path(folder)) for task in files.FILES):
        pytest.skip("GEMCUTTER_BENCHMARKS names no folder with the files of piqa and arc_easy")
    rows = files.piqa(folder)["validation"], files.arc_easy(folder)["test"]
    assert [len(split) for split in rows] == [1838, 2376]
    assert {len(row["choices"]) for row in rows[1]} == {3, 4, 5}
    assert all(0 <= row["gold"] < len(row["choices"]) for row in rows[1])
    result = score(learned, tokenizer, asked(None, limit=20), None, 512)
    assert {task: entry["items"] for task, entry in result["tasks"].items()} == {"piqa": 20, "arc_easy": 20}
    assert all(0 <= entry["value"] <= 1 for entry in result["tasks"].values())
    assert result["skipped"] == {}


def test_absent_files_skip_a_task_with_the_reason(
    learned: Gemma, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMCUTTER_BENCHMARKS", raising=False)
    result = score(learned, tokenizer, asked(None), None, 128)
    assert set(result["skipped"]) == {"piqa", "arc_easy"}
    assert "evaluate.benchmarks or the variable GEMCUTTER_BENCHMARKS" in result["skipped"]["piqa"]
    assert result["tasks"] == {}
    monkeypatch.setenv("GEMCUTTER_BENCHMARKS", str(write_piqa(tmp_path, set())))
    result = score(learned, tokenizer, asked(None), None, 128)
    assert set(result["tasks"]) == {"piqa"}
    assert str(tmp_path) in result["skipped"]["arc_easy"]
    assert "arc_easy/olmes_test_rc_5shot_requests.jsonl" in result["skipped"]["arc_easy"]
    assert score(learned, tokenizer, asked(tmp_path, tasks=[]), None, 128)["tasks"] == {}


def test_an_unknown_task_is_refused_with_the_nearest_name(learned: Gemma, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"'arc_eazy': did you mean arc_easy\? Tasks: arc_easy, piqa"):
        score(learned, tokenizer, asked(None, tasks=["piqa", "arc_eazy"]), None, 128)


def test_broken_benchmark_files_are_refused_by_name_and_line(tmp_path: Path) -> None:
    piqa = write_piqa(tmp_path, set()) / "piqa"
    rows = (piqa / "valid.jsonl").read_text()
    (piqa / "valid-labels.lst").write_text("1\n" * 7)
    with pytest.raises(DataError, match=r"8 items but .* has 7 labels"):
        files.piqa(str(tmp_path))
    (piqa / "valid-labels.lst").write_text("1\n" * 7 + "2\n")
    with pytest.raises(DataError, match="line 8: the label '2'"):
        files.piqa(str(tmp_path))
    (piqa / "valid.jsonl").write_text(rows.replace('"sol2"', '"sol3"', 2))
    (piqa / "valid-labels.lst").write_text("1\n" * 8)
    with pytest.raises(DataError, match="line 1 is not an object with goal, sol1, sol2"):
        files.piqa(str(tmp_path))
    (piqa / "valid.jsonl").write_text(rows[:-9])
    with pytest.raises(DataError, match="line 8 is not JSON"):
        files.piqa(str(tmp_path))
    dump = write_arc_easy(tmp_path, set()) / "arc_easy/olmes_test_rc_5shot_requests.jsonl.gz"
    dump.write_bytes(dump.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"requests\.jsonl\.gz cannot be read"):
        files.arc_easy(str(tmp_path))


def test_without_the_harness_the_error_names_the_extra() -> None:
    program = """
import sys
sys.modules["lm_eval"] = None  # as if it were not installed
from conf.exits import ConfigError
from conf.schema import Evaluate
from trainer.evaluate.score import score
class Model:
    class config:
        max_positions = 8
assert score(Model, None, Evaluate(tasks=[]), None)["harness"] is None
try:
    score(Model, None, Evaluate(), None)
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'gemcutter[eval]'" in done.stdout
    assert "evaluate.tasks=piqa,arc_easy" in done.stdout

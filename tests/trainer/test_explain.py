"""Promises of `gemcutter explain`: what it says of a step is what the step's batches hold, and the same of a document.

The documents here are made so that any two neighbouring tokens tell which document they are of. So what a batch holds
is read off the batch, and no order is asked.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.schema import Stage
from data_pipeline.batch import Batch
from data_pipeline.shards import Document, order_key, write_shards
from data_pipeline.stream import TokenStream
from data_pipeline.tokenizer import Tokenizer
from trainer import checkpoint
from trainer.__main__ import main
from trainer.liveness.stop import StopSignal

STEPS = 40  # planned; on one process about eight epochs of the smaller source
DONE = 7  # steps, when it was stopped
ROWS = 12  # of a step, as conftest.SMALL has them
SECOND = 15 * ROWS  # the sample from which on other shards are read
SHOWN = (1, 2, 15, 16, 23, STEPS)  # the steps on both sides of the change, and others


def mark(number: int) -> int:
    """A token that only document `number` has."""
    return 20 + number


def made(numbers: range, source: str) -> list[Document]:
    """Documents of a source in the order of shards: every second token is the document's own, those between are any."""
    draw = random.Random(numbers.start)
    documents = []
    for number in numbers:
        between = [draw.randrange(300, 512) for _ in range(draw.choice((2, 5, 20, 60)))]
        tokens = [token for any_token in between for token in (mark(number), any_token)]
        array = np.array([2, *tokens, mark(number), 1])
        name = f"doc-{number}"
        documents.append(Document(name, source, array, len(array), f"https://example.org/{name}"))
    return sorted(documents, key=lambda document: order_key(document.id))


class Explained:
    """A run that was stopped on its way, and the batches it reads."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        first = [*made(range(60), "web"), *made(range(60, 110), "code")]
        second = made(range(110, 140), "books")
        sha256 = Tokenizer.load(tokenizer).sha256
        for name, documents in (("first", first), ("second", second)):
            how = {"shard_tokens": 1500, "block_documents": 8, "config": {}, "lineage": ""}
            write_shards(documents, folder / name, tokenizer_sha256=sha256, vocab_size=512, **how)
        self.documents = {document.id: document for document in (*first, *second)}
        self.by_mark = {mark(int(name.split("-")[1])): name for name in self.documents}

    def manifest(self, name: str) -> str:
        return str(self.folder / name / "manifest.json")

    @property
    def changes(self) -> list[str]:
        stages = f"[{{weights:{{web:3,code:1}}}},{{from_sample:{SECOND},manifest:{self.manifest('second')}}}]"
        return [
            f"data.manifest={self.manifest('first')}", f"data.mixture={stages}", "data.packing=best_fit",
            f"steps={STEPS}", "checkpoint.every=3",
        ]  # fmt: skip

    @cached_property
    def stream(self) -> TokenStream:
        stages = [Stage(weights={"web": 3, "code": 1}), Stage(SECOND, manifest=self.manifest("second"))]
        return TokenStream(
            self.manifest("first"), sequence_length=64, packing="best_fit", window_blocks=2, seed=0, mixture=stages
        )

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[list[Batch]]:
        """The micro-batches of one rank, step by step."""
        batches = self.stream.batches(rows_per_step=ROWS, micro_batch=3, rank=rank, world=world)
        while True:
            yield list(islice(batches, ROWS // (3 * world)))

    def held(self, rank: int = 0, world: int = 1) -> list[list[dict[str, Any]]]:
        """Of each step, every segment of its batches, told by its tokens alone, in the order of the rows."""
        return [
            [
                segment | {"micro_batch": number, "rank": rank}
                for number, batch in enumerate(micro_batches)
                for segment in self.segments(batch)
            ]
            for micro_batches in islice(self.batches(rank, world), STEPS)
        ]

    def segments(self, batch: Batch) -> Iterator[dict[str, Any]]:
        for row, numbers in enumerate(batch.segments_BS.numpy()):
            assert set(np.unique(numbers)) - {0} == set(range(1, numbers.max() + 1))
            for segment in range(1, numbers.max() + 1):
                here = numbers == segment
                inputs, targets = batch.tokens_BS[row].numpy()[here], batch.targets_BS[row].numpy()[here]
                (name,) = {self.by_mark[t] for t in (*inputs.tolist(), *targets.tolist()) if t in self.by_mark}
                assert inputs[1:].tolist() == targets[:-1].tolist()
                weights = set(batch.weights_BS[row].numpy()[here].tolist())
                assert len(weights) == 1
                whole = [*inputs.tolist(), targets[-1].item()]
                yield {"row": row, "segment": segment, "document": name, "whole": whole, "trained": weights == {1.0}}


@pytest.fixture(scope="module")
def explained(shared_lab, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    made = Explained(tmp_path_factory.mktemp("explained"), shared_lab.corpus.folder / "tokenizer.model")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shared_lab.folder)
        # As a signal does, at a step that is known: it is asked before and after the run is built, and after each step.
        asked = iter([None] * (2 + DONE - 1) + ["SIGTERM"])
        patch.setattr(StopSignal, "agreed", lambda *_: next(asked))
        assert main("train", shared_lab.overrides("explained", *made.changes)) == 75
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def held(explained: Explained) -> list[list[dict[str, Any]]]:
    return explained.held()


@pytest.fixture
def explain(shared_lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The command in this process, which saves the seconds of starting one. Gives (exit code, what it said)."""
    monkeypatch.chdir(shared_lab.folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main("explain", list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def parts(explain):
    """The parts of documents that the command lists as JSON."""

    def run(*arguments: object) -> list[dict[str, Any]]:
        code, said, complained = explain(*map(str, arguments), "--json")
        assert (code, complained) == (0, "")
        return [json.loads(line) for line in said.splitlines()]

    return run


def check(explained: Explained, listed: list[dict[str, Any]], segments: list[dict[str, Any]]) -> None:
    """What is listed are these segments, and what is said of each is so."""
    keys = ("rank", "micro_batch", "row", "segment", "document", "trained")
    assert [[part[key] for key in keys] for part in listed] == [[segment[key] for key in keys] for segment in segments]
    for part, segment in zip(listed, segments, strict=True):
        document = explained.documents[part["document"]]
        span = document.tokens[part["start"] : part["start"] + part["tokens"] + 1]
        assert span.tolist() == segment["whole"]
        assert part["url"] == f"https://example.org/{part['document']}"
        assert part["source"] == document.source


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_is_exactly_what_its_batches_hold(explained: Explained, parts, world: int) -> None:
    shares = [explained.held(rank, world) for rank in range(world)]
    for step in SHOWN:
        for rank in range(world):
            mine = parts("explained", "--step", step, "--rank", rank, "--processes", world)
            assert {part["step"] for part in mine} == {step}
            check(explained, mine, shares[rank][step - 1])


def test_ranks_together_are_the_whole_step(explained: Explained, parts) -> None:
    for step in SHOWN:
        whole = parts("explained", "--step", step)
        ranks = [parts("explained", "--step", step, "--processes", 2, "--rank", rank) for rank in range(2)]
        assert parts("explained", "--step", step, "--processes", 2) == ranks[0] + ranks[1]
        place = {"rank", "micro_batch", "row"}
        bare = [
            [{key: part[key] for key in part.keys() - place} for part in some]
            for some in (whole, [*ranks[0], *ranks[1]])
        ]
        order = [sorted(some, key=lambda part: (part["sample"], part["segment"])) for some in bare]
        assert order[0] == order[1]
        assert {part["sample"] for part in whole} == set(range((step - 1) * ROWS, step * ROWS))


def test_shard_and_block_hold_the_document(explained: Explained, parts) -> None:
    shards = {source: shards for shards in explained.stream.all_shards for source in (s.name for s in shards.sources)}
    for part in parts("explained", "--step", 15) + parts("explained", "--step", 16):
        own = shards[part["source"]]
        assert part["document"] in own.ids(part["block"])
        assert own.shard_of(part["block"])[0] == part["shard"]


def test_it_is_computed_and_not_logged(shared_lab, explained: Explained, parts, explain) -> None:
    bare = shared_lab.folder / "runs" / "bare"
    shutil.copytree(shared_lab.run("explained").folder, bare)
    for name in ("metrics.jsonl", "events.jsonl"):
        (bare / name).unlink()
    for what in (("--step", 3), ("--step", 23), ("--step", 3, "--processes", 2), ("--document", "doc-7")):
        assert parts("bare", *what) == parts("explained", *what)
    # and reading a run leaves no trace in it
    before = sorted((path, path.stat().st_mtime_ns) for path in bare.rglob("*"))
    assert explain("bare", "--document", "doc-7")[0] == explain("bare", "--step", "3")[0] == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in bare.rglob("*")) == before


def test_a_run_of_two_processes_is_shared_as_it_was_trained(shared_lab, pair, parts) -> None:
    """Nobody says how many processes there were: the run knows."""
    stream = TokenStream(
        str(shared_lab.corpus.folder / "tokens" / "manifest.json"),
        sequence_length=64, packing="pad", window_blocks=2, seed=0,
    )  # fmt: skip
    tokens = {name: own for block in stream.shards.blocks() for name, own in block.documents()}
    for rank in range(2):
        batches = stream.batches(rows_per_step=ROWS, micro_batch=3, rank=rank, world=2)
        expected = [batch.tokens_BS[row] for batch in islice(batches, 2, 4) for row in range(3)]  # of step 2
        listed = parts("pair", "--step", 2, "--rank", rank)
        assert [(part["micro_batch"], part["row"]) for part in listed] == [(m, r) for m in range(2) for r in range(3)]
        for part, row in zip(listed, expected, strict=True):
            own = tokens[part["document"]][part["start"] :][: part["tokens"]]
            assert row[: len(own)].tolist() == own.tolist()
            assert not row[len(own) :].any()
            assert part["url"] == f"https://example.org/{part['document']}"
            assert part["source"] == "invented"


def test_a_document_is_in_the_steps_that_are_named_and_no_other(explained: Explained, held, parts) -> None:
    """Held against every step that is planned, through epochs of three sources."""
    most = 0
    for name in list(explained.documents)[::3]:
        steps = [step for step, segments in enumerate(held, start=1) for s in segments if s["document"] == name]
        listed = parts("explained", "--document", name)
        assert {part["document"] for part in listed} <= {name}
        assert [part["step"] for part in listed] == sorted(steps)
        places = [(part["step"], part["rank"], part["micro_batch"], part["row"], part["segment"]) for part in listed]
        assert sorted(places) == [
            (step, segment["rank"], segment["micro_batch"], segment["row"], segment["segment"])
            for step, segments in enumerate(held, start=1)
            for segment in segments
            if segment["document"] == name
        ]
        most = max(most, len({part["step"] for part in listed if part["start"] == 0}))
    assert most > 2  # epochs


def test_a_document_of_a_rank(explained: Explained, parts) -> None:
    whole = parts("explained", "--document", "doc-7", "--processes", 2)
    ranks = [parts("explained", "--document", "doc-7", "--processes", 2, "--rank", rank) for rank in range(2)]
    assert [part for part in whole if part["rank"] == 0] == ranks[0]
    assert [part for part in whole if part["rank"] == 1] == ranks[1]


def listed(said: str, what: str) -> list[int]:
    """The numbers behind a heading of the history."""
    (found,) = re.findall(rf"^ *{what} +(none|[\d, ]+)$", said, re.MULTILINE)
    return [] if found == "none" else [int(number) for number in found.split(", ")]


def test_history_tells_done_from_coming_and_names_the_checkpoints(shared_lab, explained, held, explain) -> None:
    committed = [3, 6, DONE]
    assert checkpoint.committed_steps(shared_lab.run("explained").folder / "checkpoints") == committed
    both = 0
    for name in list(explained.documents)[::7]:
        steps = sorted({step for step, segments in enumerate(held, 1) for s in segments if s["document"] == name})
        code, said, _ = explain("explained", "--document", name)
        assert code == 0
        assert f"which has done {DONE} of {STEPS} steps" in said
        trained = [step for step in steps if step <= DONE]
        assert listed(said, "trained on in steps") == trained
        assert listed(said, "to come in steps") == [step for step in steps if step > DONE]
        assert listed(said, "left out of steps") == []
        saw = [step for step in committed if trained and step >= trained[0]]
        assert listed(said, "checkpoints that saw it") == saw
        both += bool(trained) and trained[-1] < steps[-1]
    assert both


def test_a_table_says_the_same_as_json(explained: Explained, parts, explain) -> None:
    code, said, _ = explain("explained", "--step", "3")
    assert code == 0
    heads, *rows = [line.split() for line in said.splitlines()]
    assert heads == ["step", "rank", "micro", "row", "segment", "start", "tokens", "source", "document", "url"]
    columns = ("step", "rank", "micro_batch", "row", "segment", "start", "tokens", "source", "document", "url")
    assert rows == [[str(part[column]) for column in columns] for part in parts("explained", "--step", 3)]


def test_a_run_is_named_by_its_path_as_well(shared_lab, explained: Explained, parts) -> None:
    folder = shared_lab.run("explained").folder
    assert parts(folder, "--step", 2) == parts("explained", "--step", 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nobody", "--step", "1"), 79, r"there is no run at runs/nobody: name a run id .*; known: .*explained"),
        (("explained", "--document", "doc-999"), 78, r"no document has the id 'doc-999' .*ids are those of the column"),
        (("explained", "--step", "0"), 78, r"--step=0: the first step is 1"),
        (("explained", "--step", "-3"), 78, r"--step=-3: the first step is 1"),
        (("explained", "--step", "two"), 78, r"--step: invalid int value: 'two'\nusage: gemcutter explain"),
        (("explained", "--step", "1", "--rank", "1"), 78, r"--rank=1: 1 processes share a step, 0 to 0"),
        (("explained", "--step", "1", "--rank", "2", "--processes", "2"), 78, r"--rank=2: 2 processes .*, 0 to 1"),
        (("explained", "--step", "1", "--rank", "-1"), 78, r"--rank=-1: "),
        (("explained", "--document", "doc-7", "--rank", "5"), 78, r"--rank=5: 1 processes share a step, 0 to 0"),
        (("explained", "--step", "1", "--processes", "3"), 78, r"--processes=3 with micro_batch=3 cannot share the 12"),
        (("explained", "--step", "1", "--processes", "0"), 78, r"--processes=0 "),
        (("explained", "--step", "1", "--document", "doc-7"), 78, r"not allowed with .*\nusage: gemcutter explain"),
        (("explained",), 78, r"one of the arguments --step --document is required\nusage: gemcutter explain"),
        ((), 78, r"required: run\nusage: gemcutter explain"),
    ],
)
def test_a_mistake_is_named(explained: Explained, explain, arguments: tuple[str, ...], code: int, message: str) -> None:
    answered, said, complained = explain(*arguments)
    assert answered == code
    assert said == ""
    assert complained.startswith("gemcutter explain: ")
    assert re.search(message, complained), complained


def test_the_command_answers_through_the_door_that_users_take(shared_lab, explained: Explained, parts) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("gemcutter"), "explain", "explained", "--step", "2", "--json"],
        cwd=shared_lab.folder, env=shared_lab.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == parts("explained", "--step", 2)

"""Promises of `gemcutter skip`: from the latest checkpoint on a run is not fed what was named, and all else stands."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import shlex
import shutil
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.schema import Job, Stage
from data_pipeline.batch import Batch
from data_pipeline.stream import TokenStream
from trainer import checkpoint
from trainer.__main__ import main
from trainer.run_directory import read_skips

ROWS = 48  # of a step, so that an epoch has less than six
MICRO = 24
HOW = ("data.packing=best_fit", "tokens_per_step=3072", f"micro_batch={MICRO}", "checkpoint.every=3")
DONE = 6  # steps of the run that others go on from; checkpoints stand at 3 and 6
STEPS = 14


@pytest.fixture(scope="module")
def fast_threads():
    """As the fixture `one_thread`, for runs that tests share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def composed(shared_lab) -> Job:
    """The configuration of all these runs, put together once: that takes longer than some steps."""
    return shared_lab.job("any", *HOW)


def train_in(lab, composed: Job, run_id: str, steps: int, **changes: Any) -> int:
    """The command `python -m trainer train ...` in this process, in the lab's folder. Gives the exit code.

    A lock ends with its process; as this one goes on, the file gives way to a new one.
    """
    job = copy.deepcopy(composed)
    job.run_id, job.steps = run_id, steps
    job.data.manifest, job.tokenizer.model = (value.split("=", 1)[1] for value in lab.corpus.overrides)
    for name, value in changes.items():
        setattr(job.evaluate if name == "every" else job.data, name, value)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab.folder)
        patch.setattr("conf.compose.compose", lambda *_: job)
        code = main("train", [])
    (lab.run(run_id).folder / ".lock").unlink(missing_ok=True)
    return code


@pytest.fixture(scope="module")
def six(shared_lab, composed, fast_threads):
    """Six steps. Nobody changes it."""
    assert train_in(shared_lab, composed, "six", DONE) == 0
    return shared_lab.run("six")


@pytest.fixture(scope="module")
def unskipped(shared_lab, composed, six):
    """The same run gone on without any skip. Nobody changes it."""
    shared_lab.copy(six, "unskipped")
    assert train_in(shared_lab, composed, "unskipped", STEPS) == 0
    return shared_lab.run("unskipped")


@pytest.fixture
def start(lab, composed, one_thread, capfd: pytest.CaptureFixture[str]):
    """Training on. Gives (exit code, what it said)."""

    def run(run_id: str, *, steps: int = STEPS, **changes: Any) -> tuple[int, str]:
        capfd.readouterr()
        code = train_in(lab, composed, run_id, steps, **changes)
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def train(start):
    """The same to the end, which must be a good one."""

    def run(run_id: str, *, steps: int = STEPS) -> None:
        code, said = start(run_id, steps=steps)
        assert code == 0, said

    return run


@pytest.fixture
def skip(command):
    """The command, which must end well. Gives what it said."""

    def run(*arguments: object) -> str:
        code, said, complained = command("skip", *arguments)
        assert (code, complained) == (0, "")
        return said

    return run


@pytest.fixture
def parts(command):
    """What `gemcutter explain` lists."""

    def run(*arguments: object) -> list[dict[str, Any]]:
        code, said, complained = command("explain", *arguments, "--json")
        assert (code, complained) == (0, "")
        return [json.loads(line) for line in said.splitlines()]

    return run


@pytest.fixture
def run_six(lab, six):
    """A copy of the six steps under an id, to go on from."""

    def copy(run_id: str):
        lab.copy(six, run_id)
        return lab.run(run_id)

    return copy


def stream_of(lab, run=None) -> TokenStream:
    """The stream of a run, as its own list of skips has it."""
    return TokenStream(
        str(lab.corpus.folder / "tokens" / "manifest.json"),
        sequence_length=64,
        packing="best_fit",
        window_blocks=2,
        seed=0,
        skips=read_skips(run.folder) if run else None,
    )


def steps_of(stream: TokenStream, count: int) -> list[list[Batch]]:
    """The micro-batches of each of the first steps."""
    batches = stream.batches(rows_per_step=ROWS, micro_batch=MICRO, rank=0, world=1)
    return [list(islice(batches, ROWS // MICRO)) for _ in range(count)]


ARRAYS = ("tokens_BS", "targets_BS", "segments_BS", "positions_BS", "weights_BS")


def rows_of(step: list[Batch]) -> dict[str, np.ndarray]:
    """The arrays of a step, its micro-batches one below the other."""
    return {name: torch.cat([getattr(batch, name) for batch in step]).numpy().copy() for name in ARRAYS}


def same(some: list[Batch], others: list[Batch]) -> bool:
    here, there = rows_of(some), rows_of(others)
    return all(np.array_equal(here[name], there[name]) for name in ARRAYS)


def listed(said: str, what: str) -> list[int]:
    """The numbers behind a heading of the history."""
    (found,) = re.findall(rf"^ *{what} +(none|[\d, ]+)$", said, re.MULTILINE)
    return [] if found == "none" else [int(number) for number in found.split(", ")]


def test_a_document_is_left_out_from_the_latest_checkpoint_on(
    lab, run_six, unskipped, train, command, skip, parts
) -> None:
    run = run_six("without")
    document = next(part["document"] for part in parts("without", "--step", 2) if part["tokens"] > 30)
    said = skip("without", "--document", document)
    assert f"document {document}, from sample {DONE * ROWS} on" in said
    train("without")

    steps = {part["step"]: 0 for part in parts("without", "--document", document)}
    assert min(steps) <= DONE < max(steps) <= STEPS
    for part in parts("without", "--document", document):
        assert part["trained"] == (part["step"] <= DONE)
        steps[part["step"]] += part["tokens"] * (not part["trained"])
    assert all(
        part["trained"] or part["document"] == document for step in steps for part in parts("without", "--step", step)
    )

    _, said, _ = command("explain", "without", "--document", document)
    assert listed(said, "trained on in steps") == sorted(step for step in steps if step <= DONE)
    assert listed(said, "left out of steps") == sorted(step for step in steps if step > DONE)
    _, said, _ = command("explain", "without", "--step", max(steps))
    marked = [line for line in said.splitlines() if line.endswith("  (left out)")]
    assert marked
    assert all(f"  {document}  " in line for line in marked)

    # What training counted is short of exactly these tokens.
    missing = np.cumsum([steps.get(step, 0) for step in range(1, STEPS + 1)])
    assert missing[-1] > 0
    for column in ("tokens_seen", "tokens/invented"):
        assert (np.array(unskipped.column(column)) - np.array(run.column(column))).tolist() == missing.tolist(), column
    first = min(step for step in steps if step > DONE)
    assert run.column("loss")[: first - 1] == unskipped.column("loss")[: first - 1]
    assert run.column("loss")[first - 1] != unskipped.column("loss")[first - 1]
    assert run.column("samples_done") == unskipped.column("samples_done")


def test_other_documents_stay_at_their_places(lab, run_six, skip, parts) -> None:
    run = run_six("places")
    document = next(part["document"] for part in parts("places", "--step", 2) if part["tokens"] > 30)
    skip("places", "--document", document)
    left_out = 0
    for step, (was, now) in enumerate(
        zip(steps_of(stream_of(lab), STEPS), steps_of(stream_of(lab, run), STEPS), strict=True), start=1
    ):
        before, after = rows_of(was), rows_of(now)
        for part in parts("places", "--step", step):
            if not part["trained"]:
                here = np.zeros(before["tokens_BS"].shape, bool)
                here[MICRO * part["micro_batch"] + part["row"]] = True
                here &= before["segments_BS"] == part["segment"]
                assert here.sum() == part["tokens"]
                assert not after["weights_BS"][here].any()
                assert not after["tokens_BS"][here].any()  # not even seen by what follows
                left_out += part["tokens"]
                for name in ("tokens_BS", "targets_BS", "weights_BS"):
                    before[name][here] = after[name][here] = 0
        for name in ARRAYS:
            assert np.array_equal(before[name], after[name]), (step, name)
        assert [batch.cursor.samples_done for batch in was] == [batch.cursor.samples_done for batch in now]
    assert left_out


def test_the_command_tells_which_steps_and_checkpoints_saw_the_document(run_six, skip, parts) -> None:
    run_six("told")
    seen = {part["document"]: part["step"] for step in range(DONE, 0, -1) for part in parts("told", "--step", step)}
    late = next(name for name, step in seen.items() if step == 4)  # first read between the two checkpoints
    early = next(name for name, step in seen.items() if step == 2)
    said = skip("told", "--document", early, "--document", late)
    histories = re.split(r"(?m)^(?=\S+ in told, which has done)", said)[1:]
    assert [history.split()[0] for history in histories] == [early, late]
    for history, name, checkpoints in zip(histories, (early, late), ([3, 6], [6]), strict=True):
        steps = {part["step"] for part in parts("told", "--document", name)}
        assert listed(history, "trained on in steps") == sorted(step for step in steps if step <= DONE)
        assert listed(history, "checkpoints that saw it") == checkpoints


def test_what_is_left_out_is_not_said_to_come(run_six, train, skip, parts, command) -> None:
    """The steps to come, told together with the news that the document is left out, are those without it."""
    run_six("coming")
    train("coming", steps=7)
    document = parts("coming", "--step", 7)[0]["document"]
    shutil.rmtree(Path("runs", "coming", "checkpoints", checkpoint.step_name(7)))  # so that step 7 is done again
    Path("runs", "coming", "metrics.jsonl").unlink()
    said = skip("coming", "--document", document)
    code, after, _ = command("explain", "coming", "--document", document)
    assert code == 0
    assert 7 in listed(after, "left out of steps")
    assert listed(after, "to come in steps") == []
    assert listed(said, "to come in steps") == []


def test_a_step_range_is_passed_over(lab, run_six, unskipped, train, skip, parts) -> None:
    run = run_six("passed")
    said = skip("passed", "--steps", "8-9", "--reason", "a spike")
    assert f"steps 8 to 9, samples {7 * ROWS} to {9 * ROWS - 1}, from sample {DONE * ROWS} on (a spike)" in said
    was, now = steps_of(stream_of(lab), STEPS), steps_of(stream_of(lab, run), STEPS - 2)
    for step in range(STEPS - 2):
        assert same(now[step], was[step if step < 7 else step + 2]), step + 1
    for step in range(1, STEPS - 1):
        first = (step - 1 if step < 8 else step + 1) * ROWS
        assert {part["sample"] for part in parts("passed", "--step", step)} == set(range(first, first + ROWS))

    train("passed")
    assert run.column("loss")[:7] == unskipped.column("loss")[:7]
    assert run.column("loss")[7:] != unskipped.column("loss")[7:]
    samples = [ROWS * (step if step < 8 else step + 2) for step in range(1, STEPS + 1)]
    assert run.column("samples_done") == samples
    tokens, read = np.diff(run.column("tokens_seen")), np.diff(unskipped.column("tokens_seen"))
    assert tokens[6:-2].tolist() == read[8:].tolist()  # each step has the tokens of the one two steps later
    steps = sorted(
        {part["step"] for part in parts("passed", "--document", parts("passed", "--step", 8)[0]["document"])}
    )
    assert 8 in steps


def test_ranges_add_up(lab, run_six, train, skip, parts) -> None:
    """The second counts steps as they are after the first; a run that went on in between has them all."""
    run = run_six("twice")
    skip("twice", "--steps", "8-9")
    skip("twice", "--steps", "8")
    train("twice", steps=9)
    skip("twice", "--steps", "11-12")
    train("twice", steps=12)
    steps = [*range(1, 8), 11, 12, 13, 16, 17]  # as a run without skips numbers them
    was, now = steps_of(stream_of(lab), 17), steps_of(stream_of(lab, run), 12)
    for step, origin in enumerate(steps, start=1):
        assert same(now[step - 1], was[origin - 1]), step
        first = (origin - 1) * ROWS
        assert {part["sample"] for part in parts("twice", "--step", step)} == set(range(first, first + ROWS))
    assert run.column("samples_done") == [origin * ROWS for origin in steps]


def test_a_range_that_is_saved_is_refused_until_its_checkpoints_are_moved(lab, run_six, train, command, skip) -> None:
    run = run_six("saved")
    code, said, complained = command("skip", "saved", "--steps", "5-8")
    assert (code, said) == (78, "")
    assert re.search(
        r"step 5 is part of the latest checkpoint \(step 6\), .*move the checkpoints of steps 6 away", complained
    )
    code, _, complained = command("skip", "saved", "--steps", "2-2")
    assert code == 78
    assert "move the checkpoints of steps 3, 6 away" in complained
    assert not (run.folder / "skip.jsonl").exists()

    (run.folder / "checkpoints" / checkpoint.step_name(6)).rename(lab.folder / "moved")
    assert f"from sample {3 * ROWS} on" in skip("saved", "--steps", "5-8")
    train("saved", steps=6)
    was, now = steps_of(stream_of(lab), 10), steps_of(stream_of(lab, run), 6)
    assert [same(now[step], was[origin]) for step, origin in enumerate((0, 1, 2, 3, 8, 9))] == [True] * 6
    assert [line["step"] for line in run.lines if line["attempt"] == 2] == [4, 5, 6]
    assert run.column("samples_done") == [ROWS * n for n in (1, 2, 3, 4, 9, 10)]


class Damaged:
    """A copy of a corpus with a byte flipped in the tokens of one block."""

    def __init__(self, lab, folder: Path) -> None:
        lab.corpus = lab.corpus.copy(folder)
        shards = stream_of(lab).shards
        self.block, self.sha256 = 9, shards.sha256
        name, _ = shards.shard_of(self.block)
        entry = shards.entry(self.block)
        self.shard = lab.corpus.folder / "tokens" / name
        data = bytearray(self.shard.read_bytes())
        data[entry.offset + entry.size // 2] ^= 1
        self.shard.write_bytes(data)
        with tarfile.open(self.shard) as tar:  # our reader would refuse it
            self.ids = set(json.loads(tar.extractfile(f"{self.block:06d}.meta.json").read())["ids"])


@pytest.fixture
def damaged(lab, tmp_path: Path) -> Damaged:
    return Damaged(lab, tmp_path / "corpus")


def named_command(said: str, run_id: str) -> list[str]:
    """The command that an error names, for a run."""
    (found,) = re.findall(r"`gemcutter (skip RUN [^`]+)`", said)
    return [word.replace("RUN", run_id) for word in shlex.split(found)]


def test_training_goes_on_past_a_corrupt_block(lab, start, damaged, command) -> None:
    code, said = start("corrupt", steps=9)
    assert code == 79
    assert "Traceback" not in said
    line = named_command(said, "corrupt")
    assert line == ["skip", "corrupt", "--block", f"{damaged.shard.name}:{damaged.block}@{damaged.sha256[:8]}"]
    code, told, complained = command(*line)
    assert (code, complained) == (0, "")
    assert f"every document of block {damaged.block} in {damaged.shard.name}" in told
    code, said = start("corrupt", steps=9, workers=1)  # a worker process must know the list as well
    assert code == 0, said

    run = lab.run("corrupt")
    assert run.column("step") == list(range(1, 10))
    without = stream_of(lab, run)
    spans = [span for sample in range(9 * ROWS) for span in without.spans(sample)]
    assert {span.block for span in spans if not span.weight} == {damaged.block}
    assert {span.block for span in spans if span.weight} == set(range(without.shards.num_blocks)) - {damaged.block}
    assert run.column("tokens_seen")[-1] == sum(span.slots for span in spans if span.weight)


def test_a_step_with_a_corrupt_block_can_still_be_explained(lab, start, damaged, command, parts) -> None:
    """Above all of such a run one asks what its steps held."""
    code, said = start("corrupt", steps=9)
    assert code == 79
    assert command(*named_command(said, "corrupt"))[0] == 0
    without = stream_of(lab, lab.run("corrupt"))
    sample = next(s for s in range(9 * ROWS) if not all(span.weight for span in without.spans(s)))
    code, said, complained = command("explain", "corrupt", "--step", str(sample // ROWS + 1), "--json")
    assert code == 0
    assert "cannot be read" in complained  # why some of its documents have no name
    listed = [json.loads(line) for line in said.splitlines()]
    assert any(part["document"].startswith("(unreadable ") and not part["trained"] for part in listed)
    trained = {part["document"] for part in listed if part["trained"]}
    assert trained
    assert not damaged.ids & trained


def test_a_block_named_by_its_error_is_that_of_the_right_shards(lab, start, tmp_path: Path, command) -> None:
    """Two manifests of a mixture have shards and blocks of the same names."""
    sound = lab.corpus
    damaged = Damaged(lab, tmp_path / "corpus")
    manifest = lab.corpus.folder / "tokens" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # other shards, as far as anybody can tell
    lab.corpus = sound
    stages = [Stage(), Stage(2 * ROWS, manifest=str(manifest))]
    code, said = start("mixed", steps=9, mixture=stages)
    assert code == 79, said
    assert str(damaged.shard) in said
    code, _, complained = command(*named_command(said, "mixed"))
    assert code == 0, complained
    code, said = start("mixed", steps=9, mixture=stages)
    assert code == 0, said


def test_nothing_is_skipped_for_a_corrupt_block_of_held_out_text(lab, start, tmp_path: Path) -> None:
    """The list is of what is trained on; the block of that name among the shards of training is another one."""
    lab.corpus = lab.corpus.copy(tmp_path / "corpus")
    (shard,) = sorted(Path(lab.corpus.folder, "tokens", "held_out").glob("shard-*.tar"))[:1]
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    code, said = start("held", steps=2, every=1, held_out=lab.corpus.held_out.split("=", 1)[1])
    assert code == 79
    assert str(shard) in said
    assert "gemcutter skip" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nobody", "--steps", "8"), 79, r"there is no run at runs/nobody: name a run id or a run directory"),
        (("nobody", "--list"), 79, r"there is no run at runs/nobody"),
        (("wrong",), 78, r"say what to skip: --document ID, --steps A-B or --block FILE:NUMBER@SHARDS"),
        (("wrong", "--document", "d9999"), 78, r"no document has the id 'd9999' .*ids are those of the column `id`"),
        (("wrong", "--steps", "9-8"), 78, r"--steps=9-8: .*a range does not run backwards"),
        (("wrong", "--steps", "0"), 78, r"--steps=0: the first step is 1"),
        (("wrong", "--steps", "eight"), 78, r"--steps=eight: write A-B, for example 1200-1210, or one step"),
        (
            ("wrong", "--block", "7"),
            78,
            r"--block=7: write FILE:NUMBER@SHARDS .*, for example shard-00012\.tar:7@1a2b3c4d",
        ),
        (
            ("wrong", "--block", "shard-00000.tar:7@00000000"),
            78,
            r"--block=shard-00000\.tar:7@00000000: .* have no such block",
        ),
        (
            ("wrong", "--block", "shard-00000.tar:99@00000000"),
            78,
            r"--block=shard-00000\.tar:99@00000000: .* have no such block",
        ),
        (
            ("wrong", "--steps", "8", "--block", "shard-00000.tar:99@00000000"),
            78,
            r"have no such block",
        ),  # the good part, too
        (("wrong", "--stepps", "8"), 78, r"unrecognized arguments: --stepps 8\nusage: gemcutter skip"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_added(run_six, command, arguments, code: int, message: str) -> None:
    run = run_six("wrong")
    answered, said, complained = command("skip", *arguments)
    assert (answered, said) == (code, "")
    assert complained.startswith("gemcutter skip: ")
    assert re.search(message, complained), complained
    assert not (run.folder / "skip.jsonl").exists()


def test_a_broken_list_is_named(run_six, start, command) -> None:
    run = run_six("broken")
    path = run.folder / "skip.jsonl"
    path.write_text("not a line of the list\n")
    assert start("broken", steps=7)[0] == 79
    for arguments in (
        ("explain", "broken", "--step", "1"),
        ("skip", "broken", "--steps", "8"),
        ("skip", "broken", "--list"),
    ):
        code, said, complained = command(*arguments)
        assert (code, said) == (79, "")
        assert "skip.jsonl is not a skip list (" in complained
        assert "restore it from a copy" in complained
    assert path.read_text() == "not a line of the list\n"


def test_a_run_at_work_is_left_alone(run_six, command, parts) -> None:
    run = run_six("busy")
    document = parts("busy", "--step", 1)[0]["document"]
    lock = os.open(run.folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for what in (("--document", document), ("--steps", "8"), ("--block", "shard-00000.tar:0")):
            code, said, complained = command("skip", "busy", *what)
            assert (code, said) == (79, "")
            assert re.search(r"runs/busy is in use by another job: stop it first \(it saves\)", complained)
        assert command("skip", "busy", "--list")[0] == 0  # to look is no harm
        assert parts("busy", "--step", 1)
    finally:
        os.close(lock)
    assert not (run.folder / "skip.jsonl").exists()
    assert command("skip", "busy", "--document", document)[0] == 0


def test_the_list_only_grows(run_six, train, skip, parts) -> None:
    run = run_six("grows")
    path = run.folder / "skip.jsonl"
    one, two = (parts("grows", "--step", 1)[number]["document"] for number in (0, 5))
    before = b""
    assert skip("grows", "--list") == ""
    for what in (
        ("--document", one, "--reason", "a word"),
        ("--steps", "9"),
        ("--block", "shard-00001.tar:7"),
        ("--document", two, "--block", "shard-00000.tar:0", "--steps", "12-13"),
    ):
        skip("grows", *what)
        after = path.read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        assert after.endswith(b"\n")
        before = after
    train("grows", steps=9)
    assert path.read_bytes() == before
    path.write_bytes(before + b'{"format": 1, "ti')  # a kill cut a line short
    skip("grows", "--document", one)
    after = path.read_bytes()
    assert after.startswith(before)
    lines = skip("grows", "--list").splitlines()
    assert lines == [
        f"document {one}, from sample 288 on (a word)",
        "steps 9 to 9, samples 384 to 431, from sample 288 on",
        "every document of block 7 in shard-00001.tar, from sample 288 on",
        f"document {two}, from sample 288 on",
        "every document of block 0 in shard-00000.tar, from sample 288 on",
        "steps 12 to 13, samples 576 to 671, from sample 288 on",
        f"document {one}, from sample 480 on",
    ]
    assert path.read_bytes() == after


def test_a_list_edited_in_its_past_is_refused(lab, run_six, start, train, skip, parts, command) -> None:
    run = run_six("edited")
    path = run.folder / "skip.jsonl"
    one, two = (parts("edited", "--step", 1)[number]["document"] for number in (0, 5))
    skip("edited", "--document", one)
    skip("edited", "--steps", "8")
    train("edited", steps=9)
    skip("edited", "--document", two)
    lines = path.read_text().splitlines(keepends=True)
    samples = json.loads(lines[1])["samples"]
    moved = json.loads(lines[1]) | {"samples": [samples[0], samples[1] + ROWS]}
    for edited in ([lines[1]], [json.dumps(moved) + "\n", lines[0]], []):
        path.write_text("".join(edited))
        code, said = start("edited", steps=12)
        assert code == 78
        assert "the entries of the skip list that had a part in it (" in said
        assert f'"samples": [{samples[0]}, {samples[1]}]' in said.split(", here ")[0]  # as it was
        here = re.search(r", here (.*)\) differ", said)
        assert here is not None
        assert here[1] == "none" if not edited else '"from_sample": 288' in here[1]
        assert "Traceback" not in said
        assert command("skip", "edited", "--document", two)[0] == 78
        assert command("explain", "edited", "--step", "1")[0] == 78
    path.write_text("".join(lines[:2]))  # without the last, which had no part yet
    train("edited", steps=12)
    path.write_text("".join(lines))  # and with it, now that the steps it would have had a part in are done without
    assert start("edited", steps=13)[0] == 78

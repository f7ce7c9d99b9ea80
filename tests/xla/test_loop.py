"""Promises of the training loop on xla: each shape is compiled once, no step waits, nothing is kept twice."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.trainer.conftest import Lab

pytestmark = pytest.mark.xla

STEPS, EVERY, RAMP = 20, 5, 8  # held-out loss and checkpoint every 5 steps; from step 8 on two passes
PARAMETERS = 2 + 13  # the embedding, the last norm, and those of a layer
READ = ("loss", "grad_norm", "skipped", "tokens", "counts_K")  # of each step, by the report


class Watched:
    """What `watched_run.py` writes, and the programs that XLA dumped."""

    def __init__(self, log: Path, dumps: Path) -> None:
        self.log = json.loads(log.read_text())
        self.dumps = dumps

    def calls(self, name: str) -> list[int]:
        """Where in the log the calls of a function stand."""
        return [at for at, entry in enumerate(self.log) if len(entry) == 5 and entry[0] == name]


@pytest.fixture(scope="module")
def watched(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    dump = f"--xla_dump_to={folder / 'dumps'} --xla_dump_hlo_as_text"
    lab = Lab(shared_lab.folder, shared_lab.corpus, shared_lab.environment | {"XLA_FLAGS": dump})
    changes = (
        "backend=xla", f"steps={STEPS}", f"checkpoint.every={EVERY}", f"evaluate.every={EVERY}", "evaluate.rows=17",
        lab.corpus.held_out, "optim.ema=0.5", f"batch_ramp=[{{from_step:{RAMP},tokens_per_step:1536}}]",
    )  # fmt: skip
    lab.train("watched", *changes, launcher=("tests.xla.watched_run", str(folder / "log")))
    return Watched(folder / "log", folder / "dumps")


def test_each_shape_is_compiled_once(watched: Watched) -> None:
    steps = watched.calls("train_step")
    assert len(steps) == STEPS
    compilations = [watched.log[at][3] - watched.log[at][2] for at in steps]
    first = compilations.pop(0)  # with what was done before: averages start as the parameters
    assert first == 2
    assert compilations == [int(step == RAMP) for step in range(2, STEPS + 1)]


def test_nothing_is_compiled_once_everything_has_happened(watched: Watched) -> None:
    """Averages, held-out losses and checkpoints included, and everything that torch does beside programs."""
    steps = watched.calls("train_step")
    before = [watched.log[at][2] for at in (*steps, -1)]  # compilations before each step, and at the end
    between = {step: after - at for step, (at, after) in enumerate(pairwise(before), 1) if after != at}
    assert between.keys() <= {1, EVERY, RAMP}, between  # the first of each kind of thing
    assert between[RAMP] == 1
    assert before[-1] < 40


def test_no_step_waits_for_the_one_before(watched: Watched) -> None:
    """Between the hand-over of two steps the host reads what the step before the two said, and nothing else."""
    steps = watched.calls("train_step")
    for step, (at, after) in enumerate(pairwise(steps), 1):
        read = [entry for entry in watched.log[at + 1 : after] if len(entry) == 2]
        expected = [["train_step", step - 1]] * len(READ) if step > 1 else []
        if step % EVERY:
            follows_save = step % EVERY == 1 and step > 1  # which has read them already
            expected = [] if follows_save else expected
            assert read == expected, step
            assert watched.log[after][4] - watched.log[at][4] == len(expected), step  # also past torch's dispatcher
        else:
            assert read[: len(READ)] == expected  # before what waits on purpose


def alias(header: str) -> dict[int, int]:
    """By the number of an output the parameter whose memory it takes, of a compiled program."""
    found = re.search(r"input_output_alias=\{ (.*?) \}, ", header)
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}, \w+-alias\)", found[1]) if found else []
    return {int(output): int(parameter) for output, parameter in pairs}


def test_parameters_moments_and_averages_are_changed_in_place(watched: Watched) -> None:
    """In what XLA compiled: each output that takes the place of something takes its memory, too."""
    programs = sorted(watched.dumps.glob("*after_optimizations.txt"), key=lambda path: -path.stat().st_size)
    headers = []
    for path in programs:
        with path.open() as file:
            headers.append(file.readline())
    steps, kept = headers[:2], 4 * PARAMETERS  # parameters, two moments and the number of updates of each
    for header in steps:
        assert len(alias(header)) == kept  # of all outputs but the metrics, which are new
    assert [len(alias(header)) for header in headers[2:] if len(alias(header)) > 1] == [PARAMETERS]  # averages

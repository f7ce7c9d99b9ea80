"""Promises of integrity: a bit that changed is found at the next check, the process that holds it is named, and the run
goes on from bits that were right. Four real processes."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.check import check
from conf.json_lines import append_line
from conf.schema import Job
from tests.chaos.integrity import EVERY, FLIPS, MESHES, Flip, Trained, Wanted, calm, disturbed, outcome, train
from trainer import checkpoint
from trainer.anomaly.integrity import digest, odd_ones

MATRIX = "model.blocks.1.feed_forward.up.weight"
SOME = [flip for flip in FLIPS if flip.tensor.startswith("model.")]  # make chaos flips the others, too
REPLAYED = ("integrity.replay_every=3", "integrity.digest_every=null", "mesh.fsdp=2")
WRONG = {"forward": "loss", "backward": "gradients of blocks"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, corpus) -> dict[str, Trained]:
    """All runs of this file, one after another."""
    again = ("checkpoint.every=2", *MESHES["replica4"])
    wanted = [*map(calm, MESHES), *map(disturbed, SOME), Wanted("again", f"2:7:{MATRIX},2:11:{MATRIX}", again)]
    wanted += [Wanted(what, f"1:6:{what}", REPLAYED, processes=2) for what in WRONG]
    return train(tmp_path_factory.mktemp("runs"), corpus, wanted)


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.lists(st.floats(width=16), min_size=1, max_size=40),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_any_flipped_bit_changes_a_digest(dtype: torch.dtype, values: list[float], data: st.DataObject) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    before = digest(tensor)
    raw = tensor.view(torch.uint8)
    bit = data.draw(st.integers(0, 8 * raw.numel() - 1))
    raw[bit // 8] ^= 1 << bit % 8
    after = digest(tensor)
    assert before[0] != after[0]
    raw[bit // 8] ^= 1 << bit % 8
    assert torch.equal(digest(tensor), before)


def test_a_digest_is_that_of_the_whole_and_knows_places() -> None:
    """By numbers of Python, over the end of a chunk; and of two numbers that change places."""
    values = torch.arange(2**20 + 5, dtype=torch.float32) - 1000
    bits = struct.unpack(f"{len(values)}i", values.numpy().tobytes())
    wrapped = [(total + 2**63) % 2**64 - 2**63 for total in (sum(bits), sum(n * bit for n, bit in enumerate(bits, 1)))]
    assert digest(values).tolist() == wrapped
    swapped = values.clone()
    swapped[[3, 2**20 + 2]] = values[[2**20 + 2, 3]]
    assert digest(swapped)[0] == digest(values)[0]
    assert digest(swapped)[1] != digest(values)[1]


@pytest.mark.parametrize(
    ("digests", "blamed"),
    [([1, 1, 1, 1], []), ([1, 1, 7, 1], [(2,)]), ([1, 7, 7, 1], [(0, 1, 2, 3)]), ([5, 6, 1, 1], [(0, 1, 2, 3)])],
)
def test_the_minority_is_blamed_and_where_there_is_none_all(digests: list[int], blamed: list[tuple[int, ...]]) -> None:
    flaws = odd_ones(["a"], [[9]] * 4, [[[value, 0]] for value in digests])
    assert [flaw.ranks for flaw in flaws] == blamed


def test_only_those_that_hold_the_same_part_are_compared() -> None:
    assert odd_ones(["a"], [[1], [2], [1], [2]], [[[5, 0]], [[6, 0]], [[5, 0]], [[6, 0]]]) == []


@pytest.mark.parametrize("mesh", MESHES)
def test_undisturbed_runs_raise_no_alarm(runs, mesh: str, capsys) -> None:
    run = runs[mesh]
    assert run.code == 0, run.said
    assert run.events_of("corruption") == []
    lines = [line for line in run.lines if "digest_seconds" in line]
    assert [line["step"] for line in lines] == [4, 8, 12]
    state = checkpoint.find(run.folder / "checkpoints").state
    assert state["digested"] == 12
    with capsys.disabled():
        step = sorted(line["step_seconds"] for line in run.lines)[len(run.lines) // 2]
        print(f"\n{mesh}: a check {lines[1]['digest_seconds']:.4f} s, a step {step:.4f} s")


@pytest.mark.parametrize("flip", SOME, ids=lambda flip: flip.mesh)
def test_a_flipped_bit_is_found_located_and_undone(runs, flip: Flip) -> None:
    told = outcome(flip, runs[disturbed(flip).run_id], runs[flip.mesh])
    assert (told["detected"], told["located"], told["identical"]) == (True, True, True), told


def test_a_host_that_does_it_again_ends_the_run_and_what_it_may_have_spoilt_is_withdrawn(runs) -> None:
    run = runs["again"]
    assert run.code == 77, run.said
    assert [event["step"] for event in run.events_of("corruption")] == [8, 12]
    assert [event["to_step"] for event in run.events_of("rollback")] == [4]
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [2, 4, 6, 8]
    assert f"{MATRIX} on rank 2 (" in run.said
    assert "had different copies after step 12 of again: nothing of it was saved, and it happened on " in run.said
    assert "to go on from the checkpoint of step 8 (those of steps [10] were saved later, and withdrawn)" in run.said
    assert "test memory and processors of " in (run.folder / "incidents" / "step-00000012.attempt-2.txt").read_text()


def test_what_a_death_kept_from_being_withdrawn_is_so_by_the_next_start(lab, inside) -> None:
    """An attempt found bits wrong, said so, and was killed before it could withdraw what it had saved since."""
    run = lab.train("spoilt", "checkpoint.every=10", "checkpoint.keep_last=9")
    append_line(run.folder / "events.jsonl", {"time": 0, "attempt": 1, "event": "corruption", "sound": 10, "hosts": []})
    code, said = inside("spoilt", "checkpoint.every=10", "checkpoint.keep_last=9", "steps=12")
    assert code == 0, said
    assert "attempt 2 starts at step 10" in said
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [10, 12]


def test_the_last_checkpoint_whose_bits_were_compared_is_kept(lab, inside) -> None:
    keys = ("checkpoint.every=2", "checkpoint.keep_last=1", "integrity.digest_every=7", "steps=13")
    assert inside("compared", *keys)[0] == 0
    assert checkpoint.committed_steps(lab.run("compared").folder / "checkpoints") == [6, 13]


@pytest.mark.parametrize("what", WRONG)
def test_a_step_that_is_computed_twice_names_who_differs(runs, what: str) -> None:
    run = runs[what]
    assert run.code == 77, run.said
    assert f"{WRONG[what]} on rank 1 (" in run.said
    assert f"of step 6 had other bits when computed again of {what}" in run.said
    assert run.column("step") == [1, 2, 3, 4]  # what was open is not counted
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [EVERY]


def test_to_compute_a_step_twice_changes_nothing(inside, lab, alone) -> None:
    code, said = inside("twice", "integrity.replay_every=2", "integrity.digest_every=3", "remat=block")
    assert code == 0, said
    assert lab.run("twice").column("loss") == alone.column("loss")
    assert lab.run("twice").column("grad_norm") == alone.column("grad_norm")


@pytest.mark.parametrize(("backend", "keys"), [("xla", ["digest_every", "replay_every"]), ("cuda", ["replay_every"])])
def test_what_a_device_cannot_check_is_refused(backend: str, keys: list[str]) -> None:
    job = Job()
    job.backend.name, job.integrity.digest_every, job.integrity.replay_every = backend, 100, 100
    problems = [problem for problem in check(job) if problem.startswith("integrity.")]
    assert [problem.split("=")[0].removeprefix("integrity.") for problem in problems] == keys
    assert all("with backend=" in problem and "=null" in problem for problem in problems)

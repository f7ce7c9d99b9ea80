"""Promises of a start beside a broken checkpoint: it is put aside, loudly, and the run ends as if it had never been."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from trainer import checkpoint
from trainer.checkpoint.committed import in_quarantine


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def same(ours: dict, theirs: dict) -> bool:
    bits = [{name: tensor.numpy().tobytes() for name, tensor in each.items()} for each in (ours, theirs)]
    return bits[0] == bits[1]


def test_a_run_goes_on_from_the_step_before_a_broken_one(inside, lab, alone) -> None:
    """And commits the step again, by another attempt; the broken one stays for whoever looks into it."""
    assert inside("falls", "checkpoint.every=10")[0] == 0
    run = lab.run("falls")
    (broken,) = (run.folder / "checkpoints/step-00000020").glob("attempt-*/rank-00000.safetensors")
    spoil(broken)
    (run.folder / ".lock").unlink()  # a lock ends with its process, and this one goes on
    code, said = inside("falls", "checkpoint.every=10")
    assert code == 0, said
    (event,) = [event for event in run.events if event["event"] == "quarantined"]
    assert (event["step"], event["attempt"]) == (20, 2)
    assert "rank-00000.safetensors does not have the sha256 of the manifest (corrupt)" in event["reason"]
    assert f"the checkpoint of step 20 is BROKEN and was put aside: {event['reason']}" in said
    assert [line["step"] for line in run.lines if line["attempt"] == 2] == list(range(11, 21))
    assert checkpoint.committed_steps(run.folder / "checkpoints") == [10, 20]
    assert same(run.tensors(), alone.tensors())
    assert broken.exists()
    assert in_quarantine(checkpoint.open_store(run.folder / "checkpoints")) == {20: event["reason"]}


def test_two_processes_fall_back_together(lab, pair) -> None:
    lab.train("both", "checkpoint.every=10", processes=2)
    run = lab.run("both")
    (broken,) = (run.folder / "checkpoints/step-00000020").glob("attempt-*/rank-00001.safetensors")
    broken.unlink()
    lab.train("both", "checkpoint.every=10", processes=2)
    (event,) = [event for event in run.events if event["event"] == "quarantined"]
    assert event["reason"].endswith("rank-00001.safetensors is missing from a committed checkpoint")
    assert [line["step"] for line in run.lines if line["attempt"] == 2] == list(range(11, 21))
    assert same(run.tensors(), pair.tensors())


def test_a_run_whose_checkpoints_lie_in_a_bucket_resumes_bit_for_bit(inside, lab, alone) -> None:
    """fsspec's bucket of this process's memory; retention and fall-back work there, too."""
    bucket = ("checkpoint.directory=memory://bucket/all", "checkpoint.every=10")
    memory, place = fsspec.filesystem("memory"), "memory://bucket/all/bucketed"
    try:
        assert inside("bucketed", *bucket)[0] == 0
        (lab.folder / "runs/bucketed/.lock").unlink()  # a lock ends with its process, and this one goes on
        assert checkpoint.committed_steps(place) == [10, 20]
        (commit,) = [name for name in memory.find("/bucket") if name.endswith("step-00000020/COMMIT")]
        memory.rm(commit)
        memory.pipe_file(commit, b"{}")
        code, said = inside("bucketed", *bucket, "checkpoint.keep_last=1")
        assert code == 0, said
        assert "the checkpoint of step 20 is BROKEN" in said
        assert checkpoint.committed_steps(place) == [20]
        found = checkpoint.find(place)
        assert found is not None
        assert same({name: checkpoint.read_tensor(found, name) for name in found.tensors}, alone.tensors())
        assert not (lab.folder / "runs/bucketed/checkpoints").exists()
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("job", ["evaluate", "explain"])
def test_who_only_reads_refuses_a_broken_step_and_changes_nothing(lab, alone, command, job: str) -> None:
    lab.copy(alone, "read")
    folder = lab.folder / "runs/read/checkpoints"
    (manifest,) = folder.glob("step-00000020/attempt-*/MANIFEST.json")
    spoil(manifest)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = ["read", "--step", "3"] if job == "explain" else ["run=read", "evaluate.tasks=[]"]
    code, _, said = command(job, *arguments)
    assert code == 79
    assert "MANIFEST.json is not the manifest that was committed: start the run again, which puts step 20 aside" in said
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before

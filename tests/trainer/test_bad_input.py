"""Bad input to training: the message names the value and the remedy, the exit code what helps, nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "micro_batch=5",
            r"micro_batch=5 on 1 processes does not divide the 12 rows of a step .*use micro_batch=1\|2\|3\|4\|6\|12",
        ),
        ("tokens_per_step=700", r"tokens_per_step=700 is not a multiple of data\.sequence_length=64: use .*=704"),
        ("mesh.fsdp=5", r"12 rows .*which 5 processes cannot share evenly: use one of \[1, 2, 3, 4, 6, 12\] processes"),
        ("mesh.fsdp=3", r"mesh\.replica=1 x mesh\.fsdp=3 does not match the number of processes=1: set mesh\.fsdp=-1"),
        ("optim.peak_lr=-1", r"optim\.peak_lr=-1\.0 must be greater than 0"),
        ("optim.peek_lr=1", r"optim\.peek_lr=1: no such key; did you mean optim\.peak_lr"),
        ("model.size=gemma_2bb", r"model\.size=gemma_2bb is not a known size: did you mean gemma_2b\?"),
        (
            "model.vocab_size=384",
            r"the tokenizer has 512 pieces but tiny has 384 embedding rows .*set model\.vocab_size=512",
        ),
        ("backend=cuda", r"torch finds no GPU here: .*use backend=cpu"),
        ("backend=xla", r"torch_xla is not installed here: use the environment that `make setup-tpu` makes"),
    ],
)
def test_a_wrong_value_is_named_with_its_remedy(inside, lab, change: str, message: str) -> None:
    micro_batch = ("micro_batch=4",) if change == "mesh.fsdp=3" else ()
    code, said = inside("bad", change, *micro_batch)
    assert code == 78
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not (lab.folder / "runs").exists()  # refused before anything is written


def test_a_mesh_that_does_not_match_torchrun_is_named(lab) -> None:
    """Bare torchrun answers every failure with 1; the message of the processes is what tells."""
    running = lab.start("mesh", "mesh.fsdp=1", launcher=TORCHRUN).wait()
    assert running.code == 1
    message = "mesh.replica=1 x mesh.fsdp=1 does not match the number of processes=2: set mesh.fsdp=-1, or axes whose"
    assert message in running.said
    assert not running.folder.exists()


def shard_of(lab) -> Path:
    return min(Path(lab.corpus.folder, "tokens").glob("shard-*.tar"))


def manifest_of(lab) -> Path:
    return lab.corpus.folder / "tokens" / "manifest.json"


@pytest.fixture
def damaged(lab, tmp_path: Path):
    """The lab with a corpus that the test may damage."""
    lab.corpus = lab.corpus.copy(tmp_path / "corpus")
    return lab


def test_a_missing_manifest_is_named(inside, damaged) -> None:
    manifest_of(damaged).unlink()
    code, said = inside("bad")
    assert code == 79
    assert f"there are no token shards at {manifest_of(damaged)}" in said
    assert "run `gemcutter tokenize` first, or set data.manifest" in said
    assert not (damaged.folder / "runs").exists()


def test_a_newer_manifest_is_refused(inside, damaged) -> None:
    manifest = json.loads(manifest_of(damaged).read_text())
    manifest_of(damaged).write_text(json.dumps(manifest | {"format": 99}))
    code, said = inside("bad")
    assert code == 79
    assert "has format 99, this version reads up to 1: upgrade gemcutter" in said


def test_a_truncated_shard_is_named_before_a_step_is_taken(inside, damaged) -> None:
    shard = shard_of(damaged)
    shard.write_bytes(shard.read_bytes()[:-512])
    code, said = inside("bad")
    assert code == 79
    assert re.search(rf"{shard.name} in .* has [\d,]+ bytes, but the manifest says [\d,]+ \(truncated", said)
    assert "copy the shards again from where they were made" in said
    assert not (damaged.folder / "runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_shard_bytes_that_differ_stop_training_and_keep_what_was_saved(inside, damaged, workers: int) -> None:
    """Flipped bytes show when their window is read, which may be long after the start."""
    for shard in sorted(Path(damaged.corpus.folder, "tokens").glob("shard-*.tar"))[2:3]:
        data = bytearray(shard.read_bytes())
        data[len(data) // 3] ^= 255
        shard.write_bytes(data)
    code, said = inside("bad", "steps=200", "checkpoint.every=1", f"data.workers={workers}", "optim.peak_lr=1e-4")
    assert code == 79
    assert re.search(
        r"shard-\d+\.tar, bytes [\d,]+ to [\d,]+ \(block \d+\) cannot be read \(the bytes are not those of", said
    )
    assert "copy the shards again from where they were made" in said
    assert "Traceback" not in said


def test_another_tokenizer_is_refused(inside, lab, other_corpus) -> None:
    code, said = inside("bad", f"tokenizer.model={other_corpus.folder}/tokenizer.model")
    assert code == 78
    assert re.search(
        r"the tokenizer has sha256 \w{64} \(480 pieces\), but the shards of .* were made with \w{64}", said
    )
    assert "set tokenizer.model to the model they were made with" in said
    assert not (lab.folder / "runs").exists()


def test_a_missing_tokenizer_is_named(inside, lab) -> None:
    code, said = inside("bad", "tokenizer.model=nowhere.model")
    assert code in (78, 79)
    assert "nowhere.model" in said
    assert "Traceback" not in said


def test_a_checkpoint_without_commit_counts_as_none(inside, lab, alone) -> None:
    """The save did not finish: training starts from the step before, here the first."""
    lab.copy(alone, "cut")
    (lab.folder / "runs" / "cut" / "checkpoints" / "step-00000020" / "COMMIT").unlink()
    code, said = inside("cut", "steps=2")
    assert code == 0
    assert "attempt 2 starts at step 0" in said


def test_a_model_that_does_not_fit_its_checkpoint_is_named(inside, lab, alone) -> None:
    """Same directory of checkpoints, another model: the run directory cannot tell, the checkpoint can."""
    folder = lab.folder / "elsewhere"
    shutil.copytree(alone.folder / "checkpoints", folder / "bad")
    code, said = inside("bad", "model.d_ff=64", f"checkpoint.directory={folder}")
    assert code == 78
    assert f"{folder / 'bad'}" in said
    assert "belongs to a run with another configuration" in said
    assert "model.d_ff: 128 there, 64 here" in said


def test_a_run_directory_that_cannot_be_written_is_named(inside, lab) -> None:
    (lab.folder / "runs").write_text("a file, not a folder")
    code, said = inside("bad")
    assert code == 79
    assert "runs/bad" in said
    assert "Traceback" not in said

"""Promises of the job `tokenize`: the same shards from the same text, held-out text apart, no folder overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.exits import ConfigError, DataError
from conf.schema import Job
from data_pipeline import tokenize_text
from data_pipeline.reader import Shards
from data_pipeline.shards import Document
from data_pipeline.stream import TokenStream, documents
from data_pipeline.tokenize_text import tokenize
from data_pipeline.tokenizer import Tokenizer, train

NOUNS = ["lantern", "garden", "river", "bridge", "window", "carpet", "engine", "harvest", "island", "marble"]


def text(number: int) -> str:
    return "\n".join(
        f"The {NOUNS[(number + line) % 10]} stood near the {NOUNS[number * line % 10]}  in 19{number % 90 + 10}, ünder"
        for line in range(number % 7 + 1)
    )


IDS = [f"doc-{number}" for number in range(300)]


def write_curated(folder: Path, parts: int = 2) -> None:
    folder.mkdir(parents=True)
    files = []
    for part in range(parts):
        numbers = range(300 * part // parts, 300 * (part + 1) // parts)
        columns = {
            "id": [IDS[n] for n in numbers],
            "text": [text(n) for n in numbers],
            "source": ["tales"] * len(numbers),
            "url": [f"https://example.org/{number}" for number in numbers],
        }
        path = folder / f"part-{part:05d}.parquet"
        pq.write_table(pa.table(columns), path)
        data = path.read_bytes()
        files.append(
            {
                "name": path.name,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "documents": len(numbers),
            }
        )
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": files, "lineage": "aa"}))


def job(root: Path, **changes: Any) -> Job:
    made = Job()
    made.tokenize.input = str(root / "text")
    made.tokenize.output = str(root / "tokens")
    made.tokenize.held_out = 0.1
    made.tokenize.shard_tokens = 3000
    made.tokenize.block_documents = 16
    made.tokenizer.output = str(root / "tokenizer.model")
    made.tokenizer.vocab_size = 400
    made.data.sequence_length = 64
    made.data.window_blocks = 4
    for path, value in changes.items():
        section, name = path.split("__")
        setattr(getattr(made, section), name, value)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_curated(tmp_path / "text")
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_document_is_in_the_shards_once_and_held_out_text_is_apart(root: Path) -> None:
    summary = tokenize(job(root))
    tokenizer = Tokenizer.load(root / "tokenizer.model")
    trained = dict(documents(str(root / "tokens" / "manifest.json")))
    held_out = dict(documents(str(root / "tokens" / "held_out" / "manifest.json")))
    assert not trained.keys() & held_out.keys()
    assert sorted([*trained, *held_out]) == sorted(IDS)
    assert 10 < len(held_out) < 60
    for name, tokens in (trained | held_out).items():
        expected = text(IDS.index(name))
        assert tokens.tolist() == tokenizer.encode_document(expected).tolist()
        assert tokenizer.decode(tokens) == expected
    assert list(trained) != [name for name in IDS if name in trained]  # shuffled
    assert summary["documents"] == len(trained)
    assert summary["held_out"]["documents"] == len(held_out)
    assert summary["tokens"] == sum(map(len, trained.values()))
    assert summary["held_out"]["text_bytes"] == sum(len(text(IDS.index(name)).encode()) for name in held_out)
    assert summary["vocab_size"] == 400
    assert not (root / "tokens" / "shuffling").exists()


def test_the_stream_of_a_job_uses_its_plan(root: Path) -> None:
    summary = tokenize(job(root))
    assert (root / "tokens" / "plan-S64-best_fit-w4.npz").is_file()
    stream = TokenStream(summary["manifest"], sequence_length=64, packing="best_fit", window_blocks=4, seed=0)
    stream.shards.check_tokenizer(Tokenizer.load(root / "tokenizer.model"))
    assert stream.rows_per_epoch == summary["rows"] == len(list(stream.epoch(micro_batch=1)))


def test_the_same_text_gives_the_same_bytes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with another folder name, and when the shuffle does not fit into memory at once."""
    tokenize(job(root))
    monkeypatch.setattr(tokenize_text, "_BUCKET_BYTES", 2000)
    monkeypatch.setattr(tokenize_text, "_READ_ROWS", 7)
    tokenize(job(root, tokenize__output=str(root / "again"), tokenizer__output=str(root / "again.model")))
    assert files(root / "tokens") == files(root / "again")
    assert (root / "tokenizer.model").read_bytes() == (root / "again.model").read_bytes()


def test_any_amount_of_text_is_shuffled_within_256_open_files(tmp_path: Path) -> None:
    """A petabyte, on paper: enough documents of each split to open every bucket, in a process that may open no more."""
    empty = np.zeros(2, np.int32)
    shuffled = tokenize_text._Shuffled(tmp_path, text_bytes={"s": 10**15})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 256, limits[1]))
    try:
        for split in ("train", "held_out"):
            shuffled.add(split, [Document(f"{split}-{n}", "s", empty, 0) for n in range(3000)])
        shuffled.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(list(shuffled.documents("held_out"))) == 3000
    assert len(list(tmp_path.iterdir())) == 256


def test_a_second_run_does_nothing(root: Path) -> None:
    first = tokenize(job(root))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.tar")}
    assert tokenize(job(root)) == first
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.tar")} == before


def test_another_sequence_length_only_adds_its_plan(root: Path) -> None:
    tokenize(job(root))
    tokenize(job(root, data__sequence_length=32))
    assert (root / "tokens" / "held_out" / "plan-S32-best_fit-w4.npz").is_file()


def test_another_configuration_is_refused_with_the_keys_that_differ(root: Path) -> None:
    tokenize(job(root))
    before = files(root)
    with pytest.raises(
        ConfigError,
        match=r"holds shards of another configuration: tokenizer\.vocab_size=420 \(there: 400\), "
        r"tokenize\.held_out=0\.2 \(there: 0\.1\): set another tokenize\.output",
    ):
        tokenize(job(root, tokenizer__vocab_size=420, tokenize__held_out=0.2))
    (root / "text" / "manifest.json").write_bytes((root / "text" / "manifest.json").read_bytes() + b" ")
    with pytest.raises(ConfigError, match=r"tokenize\.input=[0-9a-f]{64} \(there: [0-9a-f]{64}\)"):
        tokenize(job(root))
    assert {name: data for name, data in files(root).items() if not name.startswith("text")} == {
        name: data for name, data in before.items() if not name.startswith("text")
    }


def test_an_interrupted_run_is_made_good(root: Path) -> None:
    tokenize(job(root))
    whole = files(root / "tokens")
    (root / "tokens" / "manifest.json").unlink()
    (root / "tokens" / "shuffling").mkdir()
    (root / "tokens" / "shuffling" / "train-0").write_bytes(b"half")
    (root / "tokens" / "shard-00099.tar.partial").write_bytes(b"half")
    tokenize(job(root))
    assert files(root / "tokens") == whole


def test_a_run_killed_after_its_last_manifest_leaves_no_scratch_behind(root: Path) -> None:
    first = tokenize(job(root))
    whole = files(root / "tokens")
    (root / "tokens" / "shuffling").mkdir()
    (root / "tokens" / "shuffling" / "train-0").write_bytes(b"left")
    assert tokenize(job(root)) == first
    assert files(root / "tokens") == whole
    assert not (root / "tokens" / "shuffling").exists()


def test_shards_that_lost_their_tokenizer_name_remedies_that_work(root: Path) -> None:
    first = tokenize(job(root))
    copy = (root / "tokenizer.model").rename(root / "copy.model")
    with pytest.raises(
        ConfigError,
        match=r"tokenizer\.output=.*tokenizer\.model, the tokenizer of the complete shards in tokenize\.output=.*tokens"
        r", is missing: set tokenizer\.model to a copy of it \(sha256 [0-9a-f]{64}\), or remove .*tokens to make both",
    ):
        tokenize(job(root))
    assert tokenize(job(root, tokenizer__model=str(copy))) == first | {"tokenizer": str(copy)}
    shutil.rmtree(root / "tokens")
    assert tokenize(job(root)) == first
    assert (root / "tokenizer.model").read_bytes() == copy.read_bytes()


def test_a_failure_after_the_shards_does_not_deny_them(root: Path) -> None:
    """The plan cannot be written where a folder is in its way."""
    tokenize(job(root))
    (root / "tokens" / "plan-S32-best_fit-w4.npz.partial").mkdir()
    with pytest.raises(
        DataError, match=r"cannot write .*\.partial \(.*: the shards of .*tokens are complete; free space"
    ):
        tokenize(job(root, data__sequence_length=32))


PROGRAM = """
import sys
from conf.schema import Job
from data_pipeline import tokenize_text
job = Job()
job.tokenize.input, job.tokenize.output, job.tokenizer.output = sys.argv[1:]
job.tokenizer.vocab_size, job.tokenize.held_out = 400, 0.1
write = tokenize_text.write_shards
def write_and_wait(*args, **keys):  # in the midst of its work: held-out shards written, the others not
    write(*args, **keys)
    print("at work", flush=True)
    sys.stdin.read()
tokenize_text.write_shards = write_and_wait
tokenize_text.tokenize(job)
"""


def test_a_second_process_is_refused_and_leaves_the_work_of_the_first(root: Path) -> None:
    folders = [str(root / name) for name in ("text", "tokens", "tokenizer.model")]
    command = [sys.executable, "-c", PROGRAM, *folders]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"at work\n"
        before = files(root)
        assert "tokens/shuffling/train-0" in before
        with pytest.raises(ConfigError, match=r"another process is at work on .*tokens: .* another tokenize\.output"):
            tokenize(job(root))
        assert files(root) == before
        first.communicate()
    assert first.returncode == 0
    assert not (root / "tokens" / "shuffling").exists()


def test_a_folder_of_other_files_is_never_cleared(root: Path) -> None:
    (root / "tokens").mkdir()
    (root / "tokens" / "shard-00000.tar").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"tokenize\.output=.*tokens holds other files and no shards"):
        tokenize(job(root))
    assert files(root / "tokens") == {"shard-00000.tar": b"precious"}


def test_an_existing_model_is_used(root: Path) -> None:
    (root / "mine.model").write_bytes(train([text(number) for number in range(50)], 380))
    summary = tokenize(job(root, tokenizer__model=str(root / "mine.model")))
    assert summary["vocab_size"] == 380
    assert not (root / "tokenizer.model").exists()
    assert Shards.open(summary["manifest"]).tokenizer_sha256 == Tokenizer.load(root / "mine.model").sha256


def test_a_tokenizer_that_shards_may_need_is_not_overwritten(root: Path) -> None:
    tokenize(job(root))
    with pytest.raises(ConfigError, match=r"tokenizer\.output=.*tokenizer\.model holds another model"):
        tokenize(job(root, tokenizer__vocab_size=420, tokenize__output=str(root / "other")))


def test_shards_whose_tokenizer_was_replaced_are_refused(root: Path) -> None:
    tokenize(job(root))
    (root / "tokenizer.model").write_bytes(train([text(number) for number in range(50)], 380))
    with pytest.raises(ConfigError, match=r"\(380 pieces\), but the shards of .* were made with .*\(400 pieces\)"):
        tokenize(job(root))


def test_training_text_is_sampled_by_document(root: Path) -> None:
    tokenize(job(root))
    sampled = job(root, tokenize__output=str(root / "few"), tokenizer__output=str(root / "few.model"))
    sampled.tokenizer.train_bytes = 20_000
    tokenize(sampled)
    assert (root / "few.model").read_bytes() != (root / "tokenizer.model").read_bytes()


def test_missing_text_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenize\.input=.*text holds no curated text .*run `gemcutter curate` first"):
        tokenize(job(tmp_path))


def test_text_that_is_not_what_its_manifest_says_is_named(root: Path) -> None:
    part = root / "text" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(
        DataError, match=r"part-00001\.parquet is not what its manifest says .*rerun `gemcutter curate`"
    ):
        tokenize(job(root))
    part.unlink()
    with pytest.raises(DataError, match=r"part-00001\.parquet of the curated text cannot be read"):
        tokenize(job(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not a manifest of curated text"),
        ('{"format": 9, "files": []}', "has format 9"),
        ('{"format": 1, "files": []}', "holds no documents"),
    ],
)
def test_a_wrong_manifest_of_text_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        tokenize(job(tmp_path))


def test_a_fraction_that_splits_nothing_off_names_one_that_does(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenize\.held_out=1e-05 selects none of the 300 documents: .*=0\.017"):
        tokenize(job(root, tokenize__held_out=1e-5))
    with pytest.raises(ConfigError, match=r"tokenize\.held_out=1\.0 leaves none of the 300"):
        tokenize(job(root, tokenize__held_out=1.0))
    assert "held_out" not in tokenize(job(root, tokenize__held_out=0.0))
    assert not (root / "tokens" / "held_out").exists()


def test_a_failed_write_is_reported_and_made_good(root: Path) -> None:
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(
            DataError, match=r"tokenize cannot write .* \(.*File too large.*no shards were published; free space"
        ):
            tokenize(job(root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (root / "tokens" / "manifest.json").exists()
    assert tokenize(job(root))["documents"] > 200

"""Promises of a checkpoint: only what was committed exists, no broken byte is used, and nothing in it can run code."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from conf.exits import DataError
from trainer import checkpoint
from trainer.backend import Backend, choose
from trainer.checkpoint.committed import sealed
from trainer.checkpoint.payload import write_tensors
from trainer.checkpoint.quarantine import quarantine
from trainer.checkpoint.saving import commit
from trainer.checkpoint.store import Folder, patient
from trainer.sharded import Parted

TENSORS = {"model.a": torch.arange(12.0).reshape(3, 4), "model.scalar": torch.tensor(2.5)}


@pytest.fixture
def backend(lab) -> Iterator[Backend]:
    made = choose(lab.job("checkpoint"))
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path, alone) -> Path:
    """Checkpoints of a real run that a test may damage: step 20 is committed, and 10 is a copy of it."""
    shutil.copytree(alone.folder / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(tmp_path / "checkpoints" / "step-00000020", tmp_path / "checkpoints" / "step-00000010")
    return tmp_path / "checkpoints"


def found(folder: Path, step: int | None = None) -> checkpoint.Committed:
    made = checkpoint.find(folder, step)
    assert made is not None
    return made


def edit(path: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def payload(folder: Path) -> Path:
    (made,) = [path for path in (folder / "step-00000020").iterdir() if path.is_dir()]
    return made


# --- what exists


def test_files_are_those_of_the_contract(alone) -> None:
    step = alone.folder / "checkpoints" / "step-00000020"
    commit = json.loads((step / "COMMIT").read_text())
    manifest = (step / commit["attempt"] / "MANIFEST.json").read_bytes()
    assert set(commit) == {"format", "attempt", "manifest_sha256", "time", "sha256"}
    assert re.fullmatch(r"attempt-0001-[0-9a-f]{12}", commit["attempt"])
    assert commit["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    content = json.loads(manifest)
    assert content["format"] == 1
    on_disk = {path.name for path in (step / commit["attempt"]).iterdir()}
    assert on_disk == {*content["files"], "MANIFEST.json"}
    for name, entry in content["files"].items():
        data = (step / commit["attempt"] / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    names = set(content["tensors"])
    assert {name.split(".", 1)[0] for name in names} == {"model", "optimizer"}
    models = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert names == {f"{kind}.{n}" for n in models for kind in ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")}
    assert {"step", "tokens_seen", "cursor", "random", "model"} <= set(content["state"])


def test_what_is_saved_is_what_is_read(tmp_path: Path, backend: Backend) -> None:
    checkpoint.save(tmp_path, 3, "attempt-1", TENSORS, {"step": 3, "text": "ü"}, backend)
    made = found(tmp_path)
    assert (made.step, made.state) == (3, {"step": 3, "text": "ü"})
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.read_tensor(made, name), tensor)


def test_the_safetensors_library_reads_a_payload(tmp_path: Path, backend: Backend) -> None:
    """Any other tool can: every dtype, no dimension, no value, and what is not contiguous."""
    tensors = {
        "none": torch.empty(0, 3),
        "half": torch.arange(7, dtype=torch.bfloat16),
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "long": torch.tensor([2**40, -1]),
        "bool": torch.tensor([True, False, True]),
        **TENSORS,
    }
    checkpoint.save(tmp_path, 1, "attempt-1", tensors, {}, backend)
    read = load_file(tmp_path / "step-00000001/attempt-1/rank-00000.safetensors")
    assert read.keys() == tensors.keys() - {"none"}  # of which there is nothing to write
    for name, tensor in read.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read_tensor(found(tmp_path), name), tensor)


def test_a_save_makes_no_second_copy_of_what_is_on_the_host(tmp_path: Path) -> None:
    """What goes to the store is the tensor's own memory, piece by piece."""
    tensor, seen = torch.arange(3 * 2**22, dtype=torch.float32), []

    class Watching(Folder):
        def write(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
            for chunk in chunks:
                if len(chunk) > 1000:
                    seen.append(len(chunk))
                    assert np.shares_memory(np.frombuffer(chunk, np.uint8), tensor.numpy())

    write_tensors(Watching(tmp_path), "a.safetensors", {"a": tensor})
    assert sum(seen) == tensor.nbytes
    assert max(seen) <= 2**24


def test_only_the_rows_that_are_wanted_are_read(tmp_path: Path, backend: Backend) -> None:
    """By a process that holds a part of a tensor of another mesh: never the whole of it."""
    whole = torch.arange(4000.0 * 10).reshape(4000, 10)
    checkpoint.save(tmp_path, 1, "attempt-1", {"a": whole}, {}, backend)
    made, read = found(tmp_path), []
    made.verify()

    class Watching(Folder):
        def read(self, name: str, begin: int = 0, length: int | None = None) -> bytes:
            data = super().read(name, begin, length)
            read.append(len(data))
            return data

    watched = dataclasses.replace(made, payload=Watching(tmp_path / "step-00000001/attempt-1"))

    class Rows(Parted):
        shape, dtype = whole.shape, whole.dtype

        def __init__(self) -> None:
            self.held = torch.zeros(30, 4)

        def parts(self) -> list[tuple[torch.Tensor, list[int]]]:
            return [(self.held, [1500, 6])]

        def fill(self, read: Callable[[torch.Tensor, list[int]], None]) -> None:
            read(self.held, [1500, 6])

    rows = Rows()
    checkpoint.load_tensors(watched, {"a": rows})
    assert torch.equal(rows.held, whole[1500:1530, 6:])
    assert sum(read) < 30 * 10 * 4 + 500  # and the header


def test_a_header_is_not_trusted_beyond_the_manifest(tmp_path: Path, backend: Backend) -> None:
    checkpoint.save(tmp_path, 1, "attempt-1", TENSORS, {}, backend)
    made = found(tmp_path)
    path = tmp_path / "step-00000001/attempt-1/rank-00000.safetensors"
    data = path.read_bytes()
    for was, now in (
        (b'"F32", "shape": [3, 4]', b'"F32", "shape": [4, 3]'),
        (b"[0, 48]", b"[0, 44]"),
        (b"F32", b"I32"),
    ):
        assert was in data
        path.write_bytes(data.replace(was, now))
        made.verified.add(path.name)  # as if it had changed since
        with pytest.raises(DataError, match=r"rank-00000\.safetensors says of model\.a .*, the manifest "):
            checkpoint.read_tensor(made, "model.a")
    path.write_bytes(b"\xff" * 8 + data[8:])
    with pytest.raises(DataError, match=r"rank-00000\.safetensors has a header of [\d,]+ bytes"):
        checkpoint.read_tensor(made, "model.a")


def test_a_commit_from_before_it_was_sealed_is_read(folder: Path) -> None:
    path = folder / "step-00000020" / "COMMIT"
    commit = json.loads(path.read_text())
    path.write_text(json.dumps({name: commit[name] for name in ("format", "attempt", "manifest_sha256")}))
    assert found(folder).step == 20
    assert found(folder).time is None


def test_a_tensor_with_gaps_is_not_committed(tmp_path: Path) -> None:
    """Were a process's part missing, the step would be one that can never be loaded."""
    held = checkpoint.Holding({"a": {"shape": [4], "dtype": "float32"}}, [checkpoint.Held("a", [0], torch.zeros(3))])
    store = checkpoint.open_store(tmp_path)
    checkpoint.write_payload(store, 1, "attempt-1", 0, held)
    with pytest.raises(DataError, match=r"attempt-1 has 3 of 4 values of a"):
        commit(store, 1, "attempt-1", 1, {})
    assert checkpoint.committed_steps(tmp_path) == []


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert checkpoint.find(tmp_path / "nothing") is None
    assert checkpoint.committed_steps(tmp_path / "nothing") == []


def test_a_step_without_commit_does_not_exist(folder: Path) -> None:
    (folder / "step-00000020" / "COMMIT").unlink()
    assert checkpoint.committed_steps(folder) == [10]
    assert found(folder).step == 10
    with pytest.raises(
        DataError, match=r"no checkpoint of step 20 in .*no COMMIT, so the save did not finish; .*: 10$"
    ):
        checkpoint.find(folder, 20)
    with pytest.raises(DataError, match=r"no checkpoint of step 15 .*never saved or was removed; committed steps: 10$"):
        checkpoint.find(folder, 15)
    (folder / "step-00000010" / "COMMIT").unlink()
    assert checkpoint.find(folder) is None
    with pytest.raises(DataError, match=r"no step is committed$"):
        checkpoint.find(folder, 10)


def test_a_step_moved_away_as_told_is_gone(folder: Path) -> None:
    """Whatever name the remedy "move it away" was followed with."""
    (folder / "step-00000020").rename(folder / "step-00000020.broken")
    assert checkpoint.committed_steps(folder) == [10]
    assert checkpoint.retain(folder, 1, None) == [10]
    assert (folder / "step-00000020.broken").is_dir()


def test_commit_appears_whole_and_once(tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A death, or a full disk, while COMMIT is written leaves no COMMIT; the step can be saved again."""
    link = os.link

    def full(source: Path, target: Path) -> None:
        if target.name == "COMMIT":
            raise OSError(28, "No space left on device")
        link(source, target)

    checkpoint.save(tmp_path, 1, "attempt-1", TENSORS, {}, backend)
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(DataError):
        checkpoint.save(tmp_path, 2, "attempt-1", TENSORS, {}, backend)
    assert found(tmp_path).step == 1
    monkeypatch.undo()
    checkpoint.save(tmp_path, 2, "attempt-2", TENSORS, {}, backend)
    assert found(tmp_path).attempt == "attempt-2"


def test_a_committed_step_is_never_replaced(tmp_path: Path, backend: Backend) -> None:
    checkpoint.save(tmp_path, 1, "attempt-1", TENSORS, {"first": True}, backend)
    with pytest.raises(DataError, match="could not be written"):
        checkpoint.save(tmp_path, 1, "attempt-2", TENSORS, {"first": False}, backend)
    assert found(tmp_path).state == {"first": True}


def test_later_saves_touch_no_earlier_file(tmp_path: Path, backend: Backend) -> None:
    def files() -> dict[Path, tuple[int, int, int]]:
        each = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in each}

    seen: dict[Path, tuple[int, int, int]] = {}
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, "attempt-1", TENSORS, {}, backend)
        assert {path: said for path, said in files().items() if path in seen} == seen
        assert len(files()) > len(seen)
        seen = files()


# --- broken files


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped": (flip, r"rank-00000\.safetensors does not have the sha256 of the manifest \(corrupt\)"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        r"rank-00000\.safetensors does not have the [\d,]+ bytes that the manifest says \(truncated",
    ),
    "missing": (Path.unlink, r"rank-00000\.safetensors is missing from a committed checkpoint"),
}
REMEDY = r"start the run again, which puts step 20 aside and goes on from the newest good one"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_payload_is_never_used(folder: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(payload(folder) / "rank-00000.safetensors")
    made = found(folder)
    for use in (made.verify, lambda: checkpoint.read_tensor(made, "model.embedding.weight")):
        with pytest.raises(DataError, match=f"{message}.*{REMEDY}"):
            use()


def test_a_tampered_manifest_is_refused(folder: Path) -> None:
    edit(payload(folder) / "MANIFEST.json", lambda manifest: manifest["state"].update(step=19))
    with pytest.raises(DataError, match=rf"MANIFEST\.json is not the manifest that was committed: {REMEDY}"):
        checkpoint.find(folder)
    (payload(folder) / "MANIFEST.json").unlink()
    with pytest.raises(DataError, match=rf"MANIFEST\.json is missing from a committed checkpoint: {REMEDY}"):
        checkpoint.find(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"attempt": "attempt-0001-0"}'])
def test_a_broken_commit_is_named(folder: Path, text: str) -> None:
    (folder / "step-00000020" / "COMMIT").write_text(text)
    with pytest.raises(DataError, match=rf"step-00000020/COMMIT .*{REMEDY}"):
        checkpoint.find(folder)


def reseal(path: Path, **changes: object) -> None:
    """Change a COMMIT as a version of ours would write it."""
    commit = json.loads(path.read_text())
    del commit["sha256"]
    path.write_bytes(sealed(commit | changes))


def test_a_newer_format_is_refused(folder: Path) -> None:
    reseal(folder / "step-00000020" / "COMMIT", format=2)
    with pytest.raises(DataError, match=r"COMMIT has format 2, this version reads up to 1: upgrade gemcutter"):
        checkpoint.find(folder)
    path = payload(folder) / "MANIFEST.json"
    edit(path, lambda manifest: manifest.update(format=2))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    reseal(folder / "step-00000020" / "COMMIT", format=1, manifest_sha256=digest)
    with pytest.raises(DataError, match=r"MANIFEST\.json has format 2, this version reads up to 1: upgrade gemcutter"):
        checkpoint.find(folder)


def test_a_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    made = found(folder)
    with pytest.raises(
        DataError, match=r"does not fit this model: model\.embedding\.weight of shape \[9, 9\] is of shape \[\d+, 64\]"
    ):
        checkpoint.load_tensors(made, {"model.embedding.weight": torch.empty(9, 9)}, left=lambda name: True)
    with pytest.raises(DataError, match=r"does not fit this model: model\.extra of shape \[2\] is absent in it"):
        checkpoint.load_tensors(made, {"model.extra": torch.empty(2)}, left=lambda name: True)


def test_what_has_no_place_is_named_and_nothing_changes(tmp_path: Path, backend: Backend) -> None:
    tensors = {"model.a": torch.ones(3), "model.b": torch.ones(2, dtype=torch.float64), "ema.a": torch.ones(3)}
    checkpoint.save(tmp_path, 1, "attempt-1", tensors, {}, backend)
    ours = {"model.a": torch.zeros(3)}
    with pytest.raises(DataError, match=r"does not fit this model: model\.b has no place in this model; ema\.a has no"):
        checkpoint.load_tensors(found(tmp_path), ours)
    ours["model.b"] = torch.zeros(2)
    with pytest.raises(DataError, match=r"does not fit this model: model\.b of float32 is of float64 in it$"):
        checkpoint.load_tensors(found(tmp_path), ours, left=lambda name: name.startswith("ema."))
    assert not ours["model.a"].any()
    ours["model.b"] = torch.zeros(2, dtype=torch.float64)
    checkpoint.load_tensors(found(tmp_path), ours, left=lambda name: name.startswith("ema."))
    assert ours["model.a"].all()


def test_a_file_that_is_broken_changes_no_tensor(tmp_path: Path, backend: Backend) -> None:
    checkpoint.save(tmp_path, 1, "attempt-1", TENSORS, {}, backend)
    flip(tmp_path / "step-00000001/attempt-1/rank-00000.safetensors")
    ours = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    with pytest.raises(DataError, match="corrupt"):
        checkpoint.load_tensors(found(tmp_path), ours)
    assert not any(tensor.any() for tensor in ours.values())


def test_a_run_without_a_good_checkpoint_never_begins_anew(inside, lab, alone) -> None:
    """Nor at the next start, when the broken one is in quarantine."""
    lab.copy(alone, "broken")
    checkpoints = lab.folder / "runs" / "broken" / "checkpoints"
    flip(payload(checkpoints) / "rank-00000.safetensors")
    for _ in range(2):
        code, said = inside("broken", "steps=22")
        assert code == 79
        assert re.search(r"no checkpoint in \S+ is whole \(step 20: \S+ does not have the sha256", said)
        (lab.folder / "runs" / "broken" / ".lock").unlink()  # a lock ends with its process, and this one goes on
    assert not (checkpoints / "step-00000020" / "COMMIT").exists()


# --- what is kept


@given(
    steps=st.sets(st.integers(1, 40), min_size=1, max_size=9),
    unfinished=st.sets(st.integers(1, 40), max_size=3),
    keep_last=st.integers(1, 4),
    keep_every=st.none() | st.integers(1, 10),
)
def test_retention(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], unfinished: set[int], keep_last: int, keep_every
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    for step in steps | unfinished:
        (folder / checkpoint.step_name(step) / "attempt").mkdir(parents=True)
        (folder / checkpoint.step_name(step) / "attempt" / "rank-00000.safetensors").touch()
        if step in steps:
            (folder / checkpoint.step_name(step) / "COMMIT").write_text("{}")
    kept = set(sorted(steps)[-keep_last:]) | {step for step in steps if keep_every and step % keep_every == 0}
    assert checkpoint.retain(folder, keep_last, keep_every) == sorted(kept) == checkpoint.committed_steps(folder)
    left = {int(path.name.removeprefix("step-")) for path in folder.iterdir()}
    assert left == kept | {step for step in unfinished if step > max(steps)}  # a save may be under way there


def committed_at(folder: Path, step: int, hour: float) -> None:
    """A step with what retention looks at."""
    (folder / checkpoint.step_name(step)).mkdir(parents=True)
    commit = {"format": 1, "attempt": "a", "manifest_sha256": "0", "time": hour * 3600.0}
    (folder / checkpoint.step_name(step) / "COMMIT").write_bytes(sealed(commit))


def test_the_newest_of_each_span_of_hours_stays_for_good(tmp_path: Path) -> None:
    """Whenever retention runs: step by step as in a run, with every other key at its least."""
    hours = [0.2, 0.9, 1.1, 1.5, 1.9, 2.0, 4.5, 4.9, 5.0, 9.0]
    for step, hour in enumerate(hours, start=1):
        committed_at(tmp_path, step, 24 + hour)
        checkpoint.retain(tmp_path, 1, None, keep_hours=1.0)
    assert checkpoint.committed_steps(tmp_path) == [2, 5, 6, 8, 9, 10]
    assert checkpoint.retain(tmp_path, 1, None, keep_hours=3.0) == [6, 9, 10]


def test_a_step_that_somebody_holds_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        committed_at(tmp_path, step, step)
    assert checkpoint.retain(tmp_path, 1, None, needed={1, 7}) == [1, 3]
    assert checkpoint.retain(tmp_path, 1, None) == [3]


def test_what_came_to_nothing_in_a_step_that_is_kept_is_removed(tmp_path: Path, backend: Backend) -> None:
    """But for what is in quarantine there."""
    for attempt in ("attempt-1", "attempt-2"):
        checkpoint.save(tmp_path, 1, attempt, TENSORS, {}, backend)
        if attempt == "attempt-1":
            quarantine(patient(tmp_path), 1, "a test")
    checkpoint.write_payload(Folder(tmp_path), 1, "attempt-0", 0, checkpoint.holding(TENSORS, first=True))
    (tmp_path / "step-00000001/.COMMIT-0123abcd.partial").write_bytes(b"{")
    checkpoint.save(tmp_path, 2, "attempt-3", TENSORS, {}, backend)
    assert checkpoint.retain(tmp_path, 2, None) == [1, 2]
    assert sorted(path.name for path in (tmp_path / "step-00000001").iterdir()) == ["COMMIT", "attempt-1", "attempt-2"]
    assert found(tmp_path, 1).attempt == "attempt-2"


def test_what_is_in_quarantine_stays_as_long_as_steps_of_its_age(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        committed_at(tmp_path, step, step)
    quarantine(patient(tmp_path), 2, "a test")
    assert checkpoint.retain(tmp_path, 2, None) == [1, 3]
    assert (tmp_path / "step-00000002").is_dir()
    committed_at(tmp_path, 4, 4)
    assert checkpoint.retain(tmp_path, 2, None) == [3, 4]
    assert not (tmp_path / "step-00000002").exists()


def test_a_run_keeps_what_it_is_told(inside, lab) -> None:
    changes = ("steps=9", "checkpoint.every=1", "checkpoint.keep_last=2", "checkpoint.keep_every=4", "micro_batch=12")
    assert inside("keeps", *changes)[0] == 0
    assert checkpoint.committed_steps(lab.folder / "runs" / "keeps" / "checkpoints") == [4, 8, 9]


# --- nothing in it can run code


def test_nothing_is_ever_unpickled(root: Path) -> None:
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}
    files = [file for room in ("conf", "data_pipeline", "trainer", "launch") for file in (root / room).rglob("*.py")]
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}, file
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, file
                assert "torch.distributed.checkpoint" not in (node.module or ""), file  # its metadata is a pickle
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "pd.read_pickle", "pandas.read_pickle"), file
                pickles = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
                assert all(isinstance(value, ast.Constant) and value.value is False for value in pickles), file
                assert called not in ("np.load", "numpy.load") or pickles, file


def test_a_payload_is_safetensors_and_json(alone) -> None:
    names = {path.name for path in (alone.folder / "checkpoints").rglob("*") if path.is_file()}
    assert names == {"COMMIT", "MANIFEST.json", "rank-00000.safetensors"}

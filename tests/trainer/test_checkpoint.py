"""Promises of a checkpoint: only what was committed exists, no broken byte is used, and nothing in it can run code."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conf.exits import DataError
from trainer import checkpoint
from trainer.backend import Backend, choose
from trainer.checkpoint.committed import sealed

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
    with pytest.raises(checkpoint.SaveError):
        checkpoint.save(tmp_path, 2, "attempt-1", TENSORS, {}, backend)
    assert found(tmp_path).step == 1
    monkeypatch.undo()
    checkpoint.save(tmp_path, 2, "attempt-2", TENSORS, {}, backend)
    assert found(tmp_path).attempt == "attempt-2"


def test_a_committed_step_is_never_replaced(tmp_path: Path, backend: Backend) -> None:
    checkpoint.save(tmp_path, 1, "attempt-1", TENSORS, {"first": True}, backend)
    with pytest.raises(checkpoint.SaveError, match="could not be written"):
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

"""Promises of the run directory: stable, owned by one job at a time, and never mixed with another run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf import schema
from conf.exits import DataError
from conf.json_lines import append_line
from tests.data_pipeline.hostile_http import HostileServer
from trainer import run_directory
from trainer.run_directory import RunDirectory, config_sha256, read_config


def test_its_name_follows_the_identity_keys_alone(lab) -> None:
    """The same run continues when a free or elastic key changes; another identity is another run."""

    def name(*changes: str) -> Path:
        return RunDirectory(lab.job("null", *changes)).path

    first = name()
    assert first == name("steps=99", "micro_batch=1", "data.workers=3", "checkpoint.every=7", "mesh.replica=2")
    assert first.parent == Path("runs")
    others = [name(change) for change in ("optim.peak_lr=1e-3", "seed=1", "model.d_ff=64", "data.sequence_length=32")]
    assert len({first, *others}) == 5


def test_it_states_the_configuration(alone, shared_lab) -> None:
    stored = read_config(alone.folder)
    job = shared_lab.job("alone")
    assert stored["format"] == 1
    assert stored["run_id"] == "alone"
    assert stored["identity"] == schema.identity(job)
    assert stored["config"]["optim"]["peak_lr"] == 3e-3
    assert (alone.folder / "tokenizer.model").read_bytes() == Path(job.tokenizer.model).read_bytes()


def test_a_second_job_is_refused_while_the_first_lives(lab, inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "_CLAIM_SECONDS", 1.5)
    first = lab.start("busy", "steps=100000")
    first.until_step(1)
    code, said = inside("busy", "steps=100000")
    assert code == 79  # a restart may find it free
    assert "runs/busy is in use by another job: waiting up to 2 s for it to end" in said
    assert "wait for it to end, or give this run another run_id" in said
    first.process.send_signal(signal.SIGTERM)
    assert first.wait().code == 75, first.said
    assert {event["attempt"] for event in first.events} == {1}


def test_a_directory_of_another_configuration_is_refused_with_the_difference(lab, inside, alone) -> None:
    lab.copy(alone, "mine")
    before = {path: path.read_bytes() for path in (lab.folder / "runs").rglob("*") if path.is_file()}
    code, said = inside("mine", "optim.peak_lr=0.5", "seed=4")
    assert code == 78
    assert "runs/mine belongs to a run with another configuration" in said
    assert "optim.peak_lr: 0.003 there, 0.5 here" in said
    assert "seed: 0 there, 4 here" in said
    assert "give this run another run_id or name" in said
    assert {path: path.read_bytes() for path in (lab.folder / "runs").rglob("*") if path.is_file()} == before


def test_checkpoints_left_in_another_folder_are_not_forgotten(lab, inside, alone) -> None:
    """A run that is told of a new, empty folder would otherwise begin again at step 0."""
    lab.copy(alone, "roaming")
    code, said = inside("roaming", "steps=21", f"checkpoint.directory={lab.folder / 'other'}")
    assert code == 78
    assert (
        f"{lab.folder / 'other' / 'roaming'} has no checkpoint, but this run has some in runs/roaming/checkpoints"
        in said
    )
    assert "move that folder there, or set checkpoint.directory as it was" in said


def test_shards_may_move_but_not_change(lab, inside, alone, other_corpus) -> None:
    """Where they lie is no part of a run; that they are the same ones is."""
    lab.copy(alone, "moved")
    lab.copy(alone, "changed")
    lab.corpus = lab.corpus.copy(lab.folder / "elsewhere")
    assert inside("moved", "steps=21")[0] == 0
    lab.corpus = other_corpus
    code, said = inside("changed", "steps=21")
    assert code == 78
    assert "cannot resume after 240 samples" in said
    assert "the shards (manifest sha256 " in said
    assert "restore the values the run was started with, or start a new run" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("format: 2\n", r"has format 2, this version reads up to 1: upgrade gemcutter"),
        ("[1, 2", r"is not the configuration of a run"),
        ("", r"is not the configuration of a run"),
        ("name: x\n", r"is not the configuration of a run"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_config(tmp_path)
    assert str(tmp_path / "config.yaml") in str(raised.value)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a run directory .*config\.yaml cannot be read"):
        read_config(tmp_path)


def test_a_line_cut_short_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_line(path, {"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_attempts_count_on_after_a_cut_line(lab, alone, inside) -> None:
    lab.copy(alone, "cut")
    ledger = lab.folder / "runs" / "cut" / "events.jsonl"
    with ledger.open("a") as file:
        file.write('{"event": "sta')
    assert inside("cut")[0] == 0
    *_, end = [json.loads(line) for line in ledger.read_text().splitlines() if line.endswith("}")]
    assert end["event"] == "end"
    assert end["attempt"] == 2


def test_config_yaml_is_plain(alone) -> None:
    """Any YAML reader can read it: no tags, no Python."""
    text = (alone.folder / "config.yaml").read_text()
    assert "!" not in text
    assert yaml.safe_load(text)["config"]["steps"] == 20


def test_what_is_secret_in_a_value_is_kept_nowhere(lab, inside, command) -> None:
    """Not in files of the run, those of W&B included, nor in what is said; and another password is no other run."""
    with HostileServer(lab.corpus.folder).running() as server:

        def keys(password: str) -> tuple[str, ...]:
            place = server.url.replace("//", f"//somebody:{password}@") + "/tokens"
            query = f"manifest.json?sig={password}"
            return (
                f"data.manifest='{place}/{query}'", f"data.held_out='{place}/held_out/{query}'", "evaluate.every=2",
                f"data.cache={lab.folder}/cache", "tracker=offline",
            )  # fmt: skip

        code, said = inside("secret", *keys("hunter2"), "steps=2")
        assert code == 0, said
        run = lab.run("secret").folder
        assert read_config(run)["sha256"] == config_sha256(lab.job("secret", *keys("hunter2"), "steps=2"))
        again = ""
        for changes in (("steps=4",), ("steps=4", "data.held_out=null")):
            (run / ".lock").unlink()  # a lock ends with its process; this one goes on
            code, more = inside("secret", *keys("swordfish"), *changes)
            assert code == 0, more
            again += more
        shown = f"{server.url.replace('//', '//...@')}/tokens/held_out/manifest.json?..."
        assert f"data.held_out is now None, was {shown}" in again
        changed = [(event["key"], event["was"]) for event in lab.run("secret").events if event["event"] == "changed"]
        assert changed == [("steps", 2), ("data.held_out", shown)]
        code, _, refused = command("explain", "secret", "--step", 1)
        assert code == 78
        assert "lacks what is secret in it, which a run directory does not keep" in refused
    written = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    for password in ("hunter2", "swordfish"):
        assert [path for path in written if password.encode() in path.read_bytes()] == []
        assert password not in said + again + refused


def test_the_lock_ends_with_its_job(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab.folder)
    monkeypatch.setattr(run_directory, "_CLAIM_SECONDS", 0.2)
    first, second = (RunDirectory(lab.job("locked")) for _ in range(2))
    first.claim()
    with pytest.raises(DataError, match="in use by another job"):
        second.claim()
    shutil.rmtree(first.path)


def test_a_job_waits_for_the_one_before_it_to_die(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart, processes of the attempt before may live on for a while on another host."""
    monkeypatch.chdir(lab.folder)
    directory = RunDirectory(lab.job("dying"))
    directory.path.mkdir(parents=True)
    dies = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True)"
    command = [sys.executable, "-c", f"{dies}; time.sleep(2)", str(directory.path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == b"\n"
        assert directory.claim() == 1

"""Promises of `gemcutter checkpoint`: it shows what is there and what is wrong with it, and changes nothing."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainer.threads import on_each
from trainer import checkpoint
from trainer.checkpoint.quarantine import quarantine
from trainer.checkpoint.store import patient


@pytest.fixture
def folder(lab, alone) -> Path:
    """Checkpoints of the run `looked`: steps 10 and 20 of the same bytes."""
    lab.copy(alone, "looked")
    made: Path = lab.folder / "runs/looked/checkpoints"
    shutil.copytree(made / "step-00000020", made / "step-00000010")
    return made


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(text: str) -> list[list[str]]:
    """The cells of a table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_ls_shows_every_step_and_what_became_of_it(folder: Path, alone, command) -> None:
    quarantine(patient(folder), 10, "the reason")
    (folder / "step-00000030/attempt-0002-abc").mkdir(parents=True)
    (folder / "step-00000030/attempt-0002-abc/rank-00000.safetensors").write_bytes(b"half")
    before = files(folder)
    code, said, _ = command("checkpoint", "ls", "looked")
    assert code == 0
    aside, committed, unfinished = rows(said)
    assert aside[:2] == ["10", "quarantined"]
    assert aside[-1].startswith("the reason (20")
    found = checkpoint.find(folder)
    size = (folder / "step-00000020" / found.attempt / "rank-00000.safetensors").stat().st_size
    assert committed[:3] == ["20", "committed", found.attempt]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", committed[3])
    assert committed[4:] == [f"{size:,}", str(len(found.tensors)), f"{alone.lines[-1]['tokens_seen']:,}", ""]
    assert unfinished[:5] == ["30", "unfinished", "attempt-0002-abc", "", "4"]
    assert files(folder) == before


def test_verify_reads_every_byte(folder: Path, command) -> None:
    code, said, _ = command("checkpoint", "verify", "looked")
    assert code == 0
    assert [(row[0], row[-1]) for row in rows(said)] == [(step, "every byte as written") for step in ("10", "20")]
    (payload,) = (folder / "step-00000010").glob("attempt-*/rank-00000.safetensors")
    data = bytearray(payload.read_bytes())
    data[-1] ^= 128
    payload.write_bytes(data)
    before = files(folder)
    code, said, _ = command("checkpoint", "verify", "looked")
    assert code == 79
    assert [row[-1].split(":")[0] for row in rows(said)] == ["BROKEN", "every byte as written"]
    assert "rank-00000.safetensors does not have the sha256 of the manifest (corrupt)" in " ".join(said.split())
    assert command("checkpoint", "verify", "looked", "--step", 20)[0] == 0
    (folder / "step-00000020/COMMIT").write_text("{}")
    code, said, _ = command("checkpoint", "verify", "looked", "--step", 20)
    assert code == 79
    assert "COMMIT is not as it was written" in said
    assert command("checkpoint", "ls", "looked")[0] == 0
    code, _, said = command("checkpoint", "verify", "looked", "--step", 15)
    assert code == 79
    assert "there is no checkpoint of step 15" in said
    del before[folder / "step-00000020/COMMIT"]
    assert before.items() <= files(folder).items()


def test_diff_says_which_tensors_differ_and_by_how_much(folder: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint.parts.PIECE", 64)  # rows come one by one
    code, said, _ = command("checkpoint", "diff", "looked")
    assert code == 0
    assert "the state is the same" in said
    assert "84 of 84 tensors are equal, bit for bit" in said
    first = {"a": torch.zeros(40, 3), "b": torch.tensor(1.0), "c": torch.ones(5), "d": torch.full((2,), math.nan)}
    second = {"a": first["a"].clone(), "b": torch.tensor(1.0), "e": torch.ones(5), "d": torch.tensor([math.nan, 1.0])}
    second["a"][33, 1] = -0.25
    for step, tensors in ((30, first), (40, second)):
        state = {"step": step, "deep": {"same": 1, "text": f"of {step}"}}
        (error,) = on_each(1, lambda one, s=step, t=tensors, u=state: checkpoint.save(folder, s, "attempt", t, u, one))
        assert error is None
    code, said, _ = command("checkpoint", "diff", "looked", "--steps", 30, 40, "--all")
    assert code == 0
    table = {row[0]: row[1:] for row in rows(said)}
    assert table["deep.text"] == ["of 30", "of 40"]
    assert "deep.same" not in table
    assert table["a"] == ["[40, 3]", "differs", "0.25"]
    assert table["b"] == ["[]", "equal", "0"]
    assert table["c"] == ["[5]", "only in a", ""]
    assert table["e"] == ["[5]", "only in b", ""]
    assert table["d"] == ["[2]", "differs", "nan"]
    assert "1 of 5 tensors are equal" in said


def test_diff_of_two_runs_shows_their_configurations(folder: Path, lab, alone, command) -> None:
    lab.copy(alone, "other")
    config = lab.folder / "runs/other/config.yaml"
    config.write_text(config.read_text().replace("micro_batch: 3", "micro_batch: 6"))
    code, said, _ = command("checkpoint", "diff", "looked", "other")
    assert code == 0
    assert ["micro_batch", "3", "6"] in rows(said)
    assert "84 of 84 tensors are equal" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ls", "nowhere"), 79, "there is no run at runs/nowhere"),
        (("mend", "looked"), 78, "invalid choice: 'mend'"),
        (("diff", "looked", "--steps", "1"), 78, "expected 2 arguments"),
        ((), 78, "required"),
    ],
)
def test_what_cannot_be_shown_is_said(folder: Path, command, arguments: tuple, code: int, message: str) -> None:
    given, _, said = command("checkpoint", *arguments)
    assert given == code
    assert message in said


def test_looking_at_files_does_not_wait_for_torch(folder: Path, lab) -> None:
    script = "import sys; from trainer.__main__ import main; code = main('checkpoint', sys.argv[1:]); "
    script += "print(code, 'torch' in sys.modules)"
    for what in ("ls", "verify"):
        done = subprocess.run(
            [sys.executable, "-c", script, what, "looked"],
            cwd=lab.folder, env=lab.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == "0 False"

"""`gemcutter doctor` refuses an environment in which another distribution owns our import names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import doctor


def install(site: Path, name: str, version: str, *packages: str) -> None:
    """What pip leaves behind of a distribution: its metadata and the names it owns."""
    metadata = site / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "top_level.txt").write_text("\n".join(packages) + "\n")


def examine(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "launch", "doctor"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(site), "COLUMNS": "300"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_single_owner_of_import_names() -> None:
    """This environment itself: an overwritten room would make every other test meaningless."""
    assert doctor.single_owner() is None


def test_sound_environment_passes(tmp_path: Path) -> None:
    done = examine(tmp_path, tmp_path / "nothing")
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * len(doctor.CHECKS)


@pytest.mark.parametrize("room", ["trainer", "launch", "conf", "data_pipeline"])
def test_second_owner_of_an_import_name_is_refused(room: str, tmp_path: Path) -> None:
    install(tmp_path / "site", "othertool", "1.0", "othertool", room)
    done = examine(tmp_path, tmp_path / "site")
    assert done.returncode == 78
    assert f"{room} belongs to gemcutter, othertool" in done.stdout
    assert "make setup" in done.stdout


def test_package_outside_its_range_is_refused(tmp_path: Path) -> None:
    install(tmp_path / "site", "rich", "1.0", "rich")
    done = examine(tmp_path, tmp_path / "site")
    assert done.returncode == 78
    assert "rich 1.0 is not >=13.9" in done.stdout
    assert "make setup" in done.stdout

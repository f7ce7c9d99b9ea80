"""`gemcutter doctor` refuses an environment in which another distribution owns our import names, or whose packages do
not belong together.
"""

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
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-P", "-m", "launch", "doctor"],
        cwd=folder, env=os.environ | {"PYTHONPATH": path, "COLUMNS": "300"},
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


def test_packages_for_tpu_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for name, version in (doctor.TPU_PACKAGES | {"torch": "2.9.1+cpu", "libtpu": "0.0.17"}).items():
        install(tmp_path / "site", name, version, name)
    done = examine(tmp_path, tmp_path / "site")
    assert done.returncode == 78
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert line.endswith("libtpu 0.0.17 (needs 0.0.21). Run make setup-tpu")


def pinned(file: Path) -> dict[str, str]:
    lines = [line.split("==") for line in file.read_text().splitlines() if "==" in line]
    return {name.replace("-", "_").lower(): version for name, version in lines}


def test_both_environments_hold_the_same_versions_but_for_what_torch_xla_is_bound_to(root: Path) -> None:
    default, tpu = pinned(root / "constraints.txt"), pinned(root / "constraints-tpu.txt")
    assert doctor.TPU_PACKAGES.items() <= tpu.items()
    assert {name for name in default.keys() & tpu.keys() if default[name] != tpu[name]} == {"torch"}


def test_chips_without_torch_xla_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert doctor.tpu_packages() is None  # nothing of TPU is here
    monkeypatch.setattr(doctor, "tpu_chips", lambda: 8)
    remedy = doctor.tpu_packages()
    assert remedy is not None
    assert "8 TPU chips" in remedy
    assert "make setup-tpu" in remedy


@pytest.mark.parametrize(("device", "chips", "sound"), [("CPU", 4, False), ("CPU", 0, True), ("TPU", 4, True)])
def test_variable_that_leaves_chips_idle_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, chips: int, sound: bool
) -> None:
    monkeypatch.setenv("PJRT_DEVICE", device)
    monkeypatch.setattr(doctor, "tpu_chips", lambda: chips)
    remedy = doctor.tpu_chosen()
    assert (remedy is None) == sound
    assert sound or (remedy is not None and "PJRT_DEVICE=CPU" in remedy and "unset it" in remedy)

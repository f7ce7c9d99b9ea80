"""`gemcutter doctor`: is this environment right, and if not what to do."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console

from conf.exits import CONFIG, DONE
from conf.hardware import tpu_chips

# The last torch_xla, and the one version of each that it loads and compiles with.
TPU_PACKAGES = {"torch": "2.9.1", "torch_xla": "2.9.0", "jax": "0.7.1", "jaxlib": "0.7.1", "libtpu": "0.0.21"}

ROOMS = ("conf", "data_pipeline", "launch", "trainer")


def examine() -> int:
    """Run every check, print one line each, return 78 when one failed."""
    console, failed = Console(), False
    for title, check in CHECKS.items():
        remedy = check()
        failed |= remedy is not None
        console.print(
            f"[green]ok[/]    {title}" if remedy is None else f"[red]wrong[/] {title}: {remedy}", highlight=False
        )
    return CONFIG if failed else DONE


def python_version() -> str | None:
    if sys.version_info >= (3, 11):
        return None
    return f"Python {sys.version.split()[0]} is too old: make the environment with Python 3.11 or newer"


def single_owner() -> str | None:
    """Our import names are plain words that other distributions use too; pip overwrites such files without a word."""
    owners = importlib.metadata.packages_distributions()
    clashes = {room: sorted(set(owners.get(room, []))) for room in ROOMS}
    wrong = {room: names for room, names in clashes.items() if names != ["gemcutter"]}
    if not wrong:
        return None
    listed = "; ".join(
        f"{room} belongs to {', '.join(names) or 'no installed distribution'}" for room, names in wrong.items()
    )
    return f"{listed}. Give gemcutter an environment of its own (make setup)"


def requirements() -> str | None:
    """Every core requirement is installed in a version its range allows."""
    wrong = []
    for line in importlib.metadata.requires("gemcutter") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    return "; ".join(wrong) + ". Run make setup" if wrong else None


def tpu_packages() -> str | None:
    """Where there are TPU chips or torch_xla, the packages that stand on each other are those of one set."""
    chips, found = tpu_chips(), {name: installed(name) for name in TPU_PACKAGES}
    if found["torch_xla"] is None:
        if not chips:
            return None
        return (
            f"this host has {chips} TPU chips, and torch_xla is not installed here: run make setup-tpu, and start "
            ".venv-tpu/bin/gemcutter"
        )
    wrong = [
        f"{name} {found[name] or 'is missing'} (needs {version})"
        for name, version in TPU_PACKAGES.items()
        if (found[name] or "").partition("+")[0] != version  # +cpu is a build of the same
    ]
    return "; ".join(wrong) + ". Run make setup-tpu" if wrong else None


def installed(name: str) -> str | None:
    """The version of a distribution in this environment."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tpu_chosen() -> str | None:
    """A variable left over from tests on virtual devices would leave the chips idle."""
    device = os.environ.get("PJRT_DEVICE", "TPU")
    if device == "TPU" or not tpu_chips():
        return None
    return f"PJRT_DEVICE={device} keeps torch_xla from the {tpu_chips()} TPU chips of this host: unset it"


def writable() -> str | None:
    folder = Path("runs") if Path("runs").exists() else Path()
    return None if os.access(folder, os.W_OK) else f"{folder.resolve()} cannot be written: start from a folder of yours"


CHECKS: dict[str, Callable[[], str | None]] = {
    "Python version": python_version,
    "import names belong to gemcutter alone": single_owner,
    "required packages": requirements,
    "packages for TPU, where there is one": tpu_packages,
    "PJRT_DEVICE, where there is a TPU": tpu_chosen,
    "runs/ can be written": writable,
}

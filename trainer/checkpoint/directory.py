"""The commit protocol of a checkpoint directory, and what a reader may see of it.

    step-00000100/
        <attempt>/            the payload: rank-00000.safetensors, ..., MANIFEST.json
        COMMIT                {attempt, sha256 of the manifest}, created last, never replaced

Nothing is renamed, since object stores cannot; no file of a committed step is written again. A step without COMMIT does
not exist. A second try at a step writes another attempt folder, so bytes of two tries never mix.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from conf.exits import DataError
from trainer.backend import Backend
from trainer.checkpoint.parts import Part, write_parts
from trainer.sharded import Parted

FORMAT = 1
_STEP = re.compile(r"step-(\d{8,})")


class SaveError(Exception):
    """A checkpoint could not be written; every process raises it together, and nothing was committed."""


@dataclass(frozen=True)
class Committed:
    """A committed step, its manifest verified. `state` is everything that is not a tensor."""

    step: int
    payload: Path
    sha256: str  # of the manifest, which through its hashes stands for every byte
    tensors: dict[str, dict[str, Any]]  # name -> shape, dtype
    state: dict[str, Any]
    _files: dict[str, dict[str, Any]]  # name -> bytes, sha256
    parts: dict[str, list[Part]]  # of each tensor, as stored
    _verified: set[str] = field(default_factory=set)

    def verified(self, name: str) -> Path:
        """A payload file, after its size and sha256 were held against the manifest. Raises DataError."""
        path, said = self.payload / name, self._files[name]
        if name not in self._verified:
            if not path.is_file():
                raise DataError(f"{path} is missing from a committed checkpoint: {_remedy(self.payload)}")
            if path.stat().st_size != said["bytes"]:
                found = f"{path.stat().st_size:,} bytes, the manifest says {said['bytes']:,}"
                raise DataError(f"{path} has {found} (truncated or overwritten): {_remedy(self.payload)}")
            if _sha256(path) != said["sha256"]:
                raise DataError(f"{path} does not have the sha256 of the manifest (corrupt): {_remedy(self.payload)}")
            self._verified.add(name)
        return path

    def verify(self) -> None:
        """Hold every payload file against the manifest. Raises DataError at the first that differs."""
        for name in self._files:
            self.verified(name)


def step_name(step: int) -> str:
    """Folder of a step."""
    return f"step-{step:08d}"


def committed_steps(directory: Path) -> list[int]:
    """Steps with a COMMIT, oldest first."""
    return sorted(step for step, folder in _steps(directory).items() if (folder / "COMMIT").is_file())


def _steps(directory: Path) -> dict[int, Path]:
    """The folder of each step, committed or not; a folder that was moved aside under another name is none."""
    matches = {path: _STEP.fullmatch(path.name) for path in directory.glob("step-*")}
    return {int(match[1]): path for path, match in matches.items() if match}


def find(directory: Path, step: int | None = None) -> Committed | None:
    """A committed step (default: the latest) with its manifest verified; None where there is no checkpoint at all.

    Raises DataError where the step that is asked for is not committed, or its manifest is not what was committed.
    """
    steps = committed_steps(directory)
    if step is None:
        if not steps:
            return None
        step = steps[-1]
    folder = directory / step_name(step)
    if step not in steps:
        why = "it has no COMMIT, so the save did not finish" if folder.is_dir() else "it was never saved or was removed"
        have = f"committed steps: {', '.join(map(str, steps))}" if steps else "no step is committed"
        raise DataError(f"there is no checkpoint of step {step} in {directory}: {why}; {have}")
    commit = _read_json(folder / "COMMIT")
    if not {"attempt", "manifest_sha256"} <= commit.keys():
        raise DataError(f"{folder / 'COMMIT'} names no attempt and manifest: {_remedy(folder)}")
    payload = folder / commit["attempt"]
    path = payload / "MANIFEST.json"
    if not path.is_file() or _sha256(path) != commit["manifest_sha256"]:
        raise DataError(f"{path} is not the manifest that was committed: {_remedy(payload)}")
    manifest = _read_json(path)
    parts: dict[str, list[Part]] = {name: [] for name in manifest["tensors"]}
    for part in manifest["parts"]:
        parts[part["tensor"]].append(Part(**part))
    return Committed(
        step=step,
        payload=payload,
        sha256=commit["manifest_sha256"],
        tensors=manifest["tensors"],
        state=manifest["state"],
        _files=manifest["files"],
        parts=parts,
    )


def save(
    directory: Path,
    step: int,
    attempt: str,
    tensors: Mapping[str, Tensor | Parted],
    state: dict[str, Any],
    backend: Backend,
) -> None:
    """Write and commit one step; every process calls it. The directory must be one that all processes see.

    Args:
        attempt: a folder name that no earlier try at this step had.
        tensors: name -> tensor, sharded or not; the same names on every process.
        state: what else a restart needs, as JSON.

    Raises:
        SaveError: on every process when one of them could not write. Earlier steps are untouched.
    """
    payload, rank = directory / step_name(step) / attempt, backend.processes.rank
    failure: BaseException | None = None
    try:
        payload.mkdir(parents=True, exist_ok=True)
        file = payload / f"rank-{rank:05d}.safetensors"
        index = write_parts(tensors, file, first=rank == 0)
        _sync(file)
        entry = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        _write(payload / f"rank-{rank:05d}.json", json.dumps({"files": {file.name: entry}, **index}))
    except (OSError, SafetensorError) as error:
        failure = error
    _agree(failure, payload, backend)
    try:
        if rank == 0:
            _commit(payload, step, state, backend.processes.size)
    except (OSError, DataError) as error:
        failure = error
    _agree(failure, payload, backend)


def _commit(payload: Path, step: int, state: dict[str, Any], processes: int) -> None:
    """Merge what the processes wrote into one manifest, then create COMMIT."""
    indexes = [_read_json(payload / f"rank-{rank:05d}.json") for rank in range(processes)]
    manifest = {
        "format": FORMAT,
        "step": step,
        "tensors": indexes[0]["tensors"],
        "parts": [part for index in indexes for part in index["parts"]],
        "files": {name: entry for index in indexes for name, entry in index["files"].items()},
        "state": state,
    }
    data = json.dumps(manifest)
    _write(payload / "MANIFEST.json", data)
    for rank in range(processes):
        (payload / f"rank-{rank:05d}.json").unlink()
    _sync(payload)
    _sync(payload.parent)
    commit = {"format": FORMAT, "attempt": payload.name, "manifest_sha256": hashlib.sha256(data.encode()).hexdigest()}
    # Written among the attempt's files and then linked: COMMIT appears whole or not at all, whatever happens meanwhile,
    # and a link, unlike a rename, never replaces one that is there.
    whole = payload / "COMMIT"
    _write(whole, json.dumps(commit))
    os.link(whole, payload.parent / "COMMIT")
    whole.unlink()
    _sync(payload.parent)


def _agree(failure: BaseException | None, payload: Path, backend: Backend) -> None:
    """Raise SaveError on every process if one of them failed."""
    (failed,) = backend.agree([float(failure is not None)])
    if failure is not None:
        raise SaveError(f"{payload} could not be written: {failure}") from failure
    if failed > 0:
        raise SaveError(f"{payload} could not be written by another process")


def retain(directory: Path, keep_last: int, keep_every: int | None) -> list[int]:
    """Remove old committed steps, and tries older than the latest commit that never finished.

    Keeps the newest `keep_last` and each multiple of `keep_every`. A step loses its COMMIT first, so that it is never
    seen half removed. Returns the steps that are left.
    """
    steps = committed_steps(directory)
    kept = set(steps[-keep_last:]) | {step for step in steps if keep_every and step % keep_every == 0}
    for step, folder in _steps(directory).items():
        if steps and step < steps[-1] and step not in kept:
            (folder / "COMMIT").unlink(missing_ok=True)
            shutil.rmtree(folder)
    return sorted(kept)


def withdraw(directory: Path, after: int) -> list[int]:
    """Make the committed steps after this one uncommitted, the latest first; returns them.

    Their files stay for whoever wants to look at them, until a later commit makes `retain` remove them.
    """
    steps = [step for step in reversed(committed_steps(directory)) if step > after]
    for step in steps:
        (directory / step_name(step) / "COMMIT").unlink()
    return steps


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): {_remedy(path.parent)}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} is not a JSON object: {_remedy(path.parent)}")
    if data.get("format", FORMAT) > FORMAT:
        raise DataError(f"{path} has format {data['format']}, this version reads up to {FORMAT}: upgrade gemcutter")
    return data


def _write(path: Path, text: str) -> None:
    """Create a file that must not exist yet, and put it on the disk."""
    with path.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(payload: Path) -> str:
    step = payload if payload.name.startswith("step-") else payload.parent
    return f"move {step} away, and the run resumes from the step before it"

"""What a reader may see of checkpoints: committed steps, and no byte of them that is not the one that was committed.

    step-00000100/
        <attempt>/            the payload: rank-00000.safetensors, ..., MANIFEST.json
        COMMIT                {attempt, sha256 of the manifest, time, sha256 of all this}, created last, never replaced

Nothing is renamed, since object stores cannot; no file of a committed step is written again. A step without COMMIT does
not exist. A second try at a step writes another attempt folder, so bytes of two tries never mix. A commit that turned
out broken is void once `<attempt>/QUARANTINE` holds a copy of it. Knows nothing of tensors but their shapes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.exits import DataError
from trainer.checkpoint.store import Patient, Store, patient

FORMAT = 1
COMMIT, MANIFEST, QUARANTINE = "COMMIT", "MANIFEST.json", "QUARANTINE"
FAULTS = (
    "is as it was written",
    "is missing from a committed checkpoint",
    "does not have the {bytes:,} bytes that the manifest says (truncated or overwritten)",
    "does not have the sha256 of the manifest (corrupt)",
)
PIECE = 16 * 2**20  # bytes read at once
_STEP_FILE = re.compile(r"step-(\d{8,})/(.+)")
_UNSEALED = {"format", "attempt", "manifest_sha256"}  # all that a COMMIT held before 2026-11-26


class BrokenError(DataError):
    """A committed checkpoint is not what was committed; `reason` says which file of `step`, and how."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(
            f"{reason}: start the run again, which puts step {step} aside and goes on from the newest good one; or "
            "name another with step=<a committed step>"
        )
        self.reason, self.step = reason, step


@dataclass(frozen=True)
class Part:
    """A box of a whole tensor, stored in a file under a name of its own."""

    tensor: str
    file: str
    key: str
    offset: list[int]
    shape: list[int]


@dataclass(frozen=True)
class Committed:
    """A committed step, its manifest verified. `state` is everything that is not a tensor.

    payload  the folder of the attempt
    sha256   of the manifest, which through its hashes stands for every byte
    time     when it was committed, in seconds since 1970; None where that was not kept
    tensors  name -> shape and dtype
    files    name -> bytes and sha256
    parts    of each tensor, as stored
    """

    step: int
    attempt: str
    payload: Patient
    sha256: str
    time: float | None
    tensors: dict[str, dict[str, Any]]
    state: dict[str, Any]
    files: dict[str, dict[str, Any]]
    parts: dict[str, list[Part]]
    verified: set[str] = field(default_factory=set)  # files that were held against the manifest

    def fault(self, name: str) -> int:
        """What is wrong with a payload file, a place in `FAULTS`; 0 where nothing is. Reads all of it, once.

        Raises DataError where storage does not answer.
        """
        if name in self.verified:
            return 0
        size = self.payload.size(name)
        if size is None:
            return 1
        if size != self.files[name]["bytes"]:
            return 2
        try:
            if digest_of(self.payload, name, size) != self.files[name]["sha256"]:
                return 3
        except FileNotFoundError:
            return 1
        self.verified.add(name)
        return 0

    def broken(self, name: str, fault: int) -> BrokenError:
        """The error that says so."""
        what = FAULTS[fault].format(**self.files[name])
        return BrokenError(f"{self.payload}/{name} {what}", self.step)

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Hold payload files (default: all) against the manifest. Raises BrokenError at the first that differs."""
        for name in self.files if names is None else names:
            if fault := self.fault(name):
                raise self.broken(name, fault)


def step_name(step: int) -> str:
    """Folder of a step."""
    return f"step-{step:08d}"


def files_by_step(store: Store) -> dict[int, list[str]]:
    """The files of each step, committed or not; a folder that was moved aside under another name is none."""
    steps: dict[int, list[str]] = {}
    for name in store.names():
        if match := _STEP_FILE.fullmatch(name):
            steps.setdefault(int(match[1]), []).append(match[2])
    return dict(sorted(steps.items()))


def committed_steps(place: Store | Path | str) -> list[int]:
    """Steps with a COMMIT that is not void, oldest first. Raises DataError where storage does not answer."""
    store = patient(place)
    return [step for step, files in files_by_step(store).items() if is_committed(store, step, files)]


def is_committed(store: Patient, step: int, files: list[str]) -> bool:
    """Whether a step of these files has a COMMIT that is not void."""
    if COMMIT not in files:
        return False
    if not (aside := [name for name in files if name.endswith(f"/{QUARANTINE}")]):
        return True
    folder = store.within(step_name(step))
    try:
        commit = folder.read(COMMIT).hex()
    except FileNotFoundError:
        return False
    return commit not in (quarantined(folder, name)["commit"] for name in aside)


def quarantined(folder: Store, name: str) -> dict[str, Any]:
    """A QUARANTINE: why, when, and the COMMIT that is void by it, in hexadecimal. One cut short says nothing."""
    try:
        said = json.loads(folder.read(name))
    except (ValueError, FileNotFoundError):
        said = None
    nothing = {"commit": "", "reason": "unknown", "time": None}
    return nothing | said if isinstance(said, dict) else nothing


def find(place: Store | Path | str, step: int | None = None) -> Committed | None:
    """A committed step (default: the latest) with its manifest verified; None where there is no checkpoint at all.

    Raises DataError where the step that is asked for is not committed, or storage does not answer; BrokenError where
    the manifest is not what was committed.
    """
    store = patient(place)
    steps = committed_steps(store)
    if step is None:
        if not steps:
            return None
        step = steps[-1]
    if step not in steps:
        have = f"committed steps: {', '.join(map(str, steps))}" if steps else "no step is committed"
        raise DataError(f"there is no checkpoint of step {step} in {store}: {_why_not(store, step)}; {have}")
    return opened(store, step)


def in_quarantine(store: Store) -> dict[int, str]:
    """The reason for each step that is in quarantine, oldest first."""
    return {
        step: str(quarantined(store.within(step_name(step)), name)["reason"])
        for step, files in files_by_step(store).items()
        for name in files
        if name.endswith(f"/{QUARANTINE}")
    }


def _why_not(store: Store, step: int) -> str:
    """Why a step that is asked for is not there."""
    if step not in files_by_step(store):
        return "it was never saved or was removed"
    if reason := in_quarantine(store).get(step):
        return f"it is in quarantine: {reason}"
    return "it has no COMMIT, so the save did not finish"


def opened(store: Patient, step: int) -> Committed:
    """A committed step. Raises BrokenError where its manifest is not what was committed."""
    folder, commit = store.within(step_name(step)), commit_of(store, step)
    payload = folder.within(commit["attempt"])
    try:
        data = payload.read(MANIFEST)
    except FileNotFoundError as error:
        raise BrokenError(f"{payload}/{MANIFEST} is missing from a committed checkpoint", step) from error
    if hashlib.sha256(data).hexdigest() != commit["manifest_sha256"]:
        raise BrokenError(f"{payload}/{MANIFEST} is not the manifest that was committed", step)
    manifest = json.loads(data)
    _refuse_newer(manifest.get("format", FORMAT), f"{payload}/{MANIFEST}")
    parts: dict[str, list[Part]] = {name: [] for name in manifest["tensors"]}
    for part in manifest["parts"]:
        parts[part["tensor"]].append(Part(**part))
    return Committed(
        step=step,
        attempt=commit["attempt"],
        payload=payload,
        sha256=commit["manifest_sha256"],
        time=commit.get("time"),
        tensors=manifest["tensors"],
        state=manifest["state"],
        files=manifest["files"],
        parts=parts,
    )


def commit_of(store: Patient, step: int) -> dict[str, Any]:
    """What the COMMIT of a step says. Raises BrokenError where it is not as it was written."""
    folder = store.within(step_name(step))
    try:
        said = folder.read(COMMIT)
    except FileNotFoundError as error:
        raise DataError(f"{folder} was removed while it was opened: name another step") from error
    return read_commit(said, f"{folder}/{COMMIT}", step)


def sealed(document: dict[str, Any]) -> bytes:
    """A small document as JSON that holds its own sha256, so that no bit of it can change unseen."""
    seal = hashlib.sha256(json.dumps(document).encode()).hexdigest()
    return json.dumps({**document, "sha256": seal}).encode()


def read_commit(data: bytes, where: str, step: int) -> dict[str, Any]:
    """What a COMMIT says. Raises BrokenError where it is not as it was written."""
    try:
        commit = dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise BrokenError(f"{where} is not a JSON object ({error})", step) from error
    unsealed = {name: value for name, value in commit.items() if name != "sha256"}
    if data != sealed(unsealed) and not _from_before_seals(commit):
        raise BrokenError(f"{where} is not as it was written", step)
    _refuse_newer(commit["format"], where)
    return unsealed


def _from_before_seals(commit: dict[str, Any]) -> bool:
    said = commit.get("attempt"), commit.get("manifest_sha256")
    return commit.keys() == _UNSEALED and commit["format"] == 1 and all(isinstance(each, str) for each in said)


def _refuse_newer(version: int, where: str) -> None:
    if version > FORMAT:
        raise DataError(f"{where} has format {version}, this version reads up to {FORMAT}: upgrade gemcutter")


def digest_of(store: Store, name: str, size: int) -> str:
    """The sha256 of so many bytes of a file, read in pieces."""
    digest = hashlib.sha256()
    for begin in range(0, size, PIECE):
        digest.update(store.read(name, begin, min(PIECE, size - begin)))
    return digest.hexdigest()

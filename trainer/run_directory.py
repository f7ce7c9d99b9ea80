"""`runs/<run_id>/`: claimed by one job at a time, stable across restarts, and refused to any other configuration."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML ships neither annotations nor stubs

from conf import schema
from conf.exits import ConfigError, DataError
from conf.json_lines import append_line, read_lines, writing
from data_pipeline.files import redacted
from data_pipeline.skips import Skip, Skips
from trainer.checkpoint import Store, committed_steps, open_store

FORMAT = 1
SKIP_LIST = "skip.jsonl"

_CLAIM_SECONDS = 60.0  # for which a job waits until one before it, which may be dying on another host, has let go
_LOOK_SECONDS = 1.0  # the same for who only adds something: `gemcutter status` shares the lock for a moment


class RunDirectory:
    """The files of a run, as one process of it sees them."""

    def __init__(self, job: schema.Job) -> None:
        self.run_id = schema.run_id(job)
        self.path = schema.run_directory(self.run_id)
        self.checkpoints = open_store(schema.checkpoint_directory(job))
        bucket = schema.checkpoint_bucket(job)
        self.bucket = None if bucket is None else open_store(bucket)
        self.places = [self.checkpoints] if self.bucket is None else [self.checkpoints, self.bucket]
        self._job = job
        self.changes: list[tuple[str, Any, Any]] = []  # (key, value at the attempt before, value now)
        self.left_behind: str | None = None  # another place where the attempt before left checkpoints
        self.quarantined: list[dict[str, Any]] = []  # steps that turned out broken at this start
        self._lock: int | None = None

    def claim(self) -> int:
        """Make the directory this job's, and return the number of this attempt.

        One process of the job calls it; `changes` is known from then on. Raises ConfigError, with the difference, where
        the directory belongs to a run of another identity; DataError where another live job holds it for
        `_CLAIM_SECONDS` or the disk does not take it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path, _CLAIM_SECONDS, "wait for it to end, or give this run another run_id")
        os.utime(self._lock)  # when it was claimed, for `gemcutter status`
        if (self.path / "config.yaml").is_file():
            before = read_config(self.path)
            refuse_other_identity(before["identity"], self._job, str(self.path))
            self.left_behind = self._left_behind(before["config"]["checkpoint"]["directory"])
            self.changes = _changes(before["config"], dataclasses.asdict(self._job))
        attempts = [event["attempt"] for event in self.events() if event["event"] in ("start", "rollback")]
        return max(attempts, default=0) + 1

    def _left_behind(self, directory: str | None) -> str | None:
        was = schema.checkpoints_of(self.path, self.run_id, directory)
        if was == redacted(schema.checkpoint_directory(self._job)):
            return None
        before = open_store(was)
        return str(before) if str(before) != str(self.checkpoints) and committed_steps(before) else None

    def keep_config(self) -> None:
        """Write config.yaml, once nothing refuses the job any more. Raises DataError where the disk is full.

        What is secret in a value is left out; the digest is of all of it.
        """
        document = {
            "format": FORMAT,
            "run_id": self.run_id,
            "sha256": config_sha256(self._job),
            "identity": redacted(schema.identity(self._job)),
            "config": redacted(dataclasses.asdict(self._job)),
        }
        temporary = self.path / ".config.yaml"
        with writing(temporary):
            temporary.write_text(yaml.safe_dump(document, sort_keys=False))
            temporary.replace(self.path / "config.yaml")

    def events(self) -> list[dict[str, Any]]:
        """The ledger so far. A last line that a kill cut short is left out."""
        return read_lines(self.path / "events.jsonl")

    def sound_until(self) -> int | None:
        """The last step whose checkpoint may be used, where bits were found wrong and nobody went on since."""
        last = None
        for event in self.events():
            if event["event"] == "corruption":
                last = event.get("sound")
            elif event["event"] in ("start", "rollback"):
                last = None
        return last

    def put_aside(self, attempt: int, step: int, reason: str) -> None:
        """Record that a checkpoint was put into quarantine."""
        self.record("quarantined", attempt, step=step, reason=reason)
        self.quarantined.append({"step": step, "reason": reason})

    def record(self, event: str, attempt: int, **facts: Any) -> None:
        """Append to the ledger, without what is secret."""
        line = {"time": time.time(), "attempt": attempt, "event": event, **redacted(facts)}
        append_line(self.path / "events.jsonl", line)


def _lock(run: Path, seconds: float, remedy: str) -> int:
    """An open, locked descriptor; the lock ends with it. Raises DataError where others hold the run for so long."""
    with writing(run):
        lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT)
    began, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            waited = time.monotonic() - began
            if waited > seconds:
                os.close(lock)
                raise DataError(f"{run} is in use by another job: {remedy}") from error
            if waited > _LOOK_SECONDS and not said:
                print(f"{run} is in use by another job: waiting up to {seconds:.0f} s for it to end", file=sys.stderr)
                said = True
        else:
            return lock
        time.sleep(0.05)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep every job out of a run while something is added to it. Raises DataError where one is at work."""
    lock = _lock(run, _LOOK_SECONDS, "stop it first (it saves), and start it again afterwards")
    try:
        yield
    finally:
        os.close(lock)


def existing_run(run: str) -> Path:
    """The directory of a run that is named by its id or path. Raises DataError where there is none."""
    path = schema.named_run(run)
    if not path.is_dir():
        known = sorted(each.parent.name for each in Path("runs").glob("*/config.yaml"))
        raise DataError(
            f"there is no run at {path}: name a run id or a run directory"
            + (f"; known: {', '.join(known)}" if known else "")
        )
    return path


def checkpoint_places(run: Path, document: dict[str, Any]) -> list[Store]:
    """Where the checkpoints of a run lie, by its stored configuration, in the order in which they are looked for."""
    keys = document["config"]["checkpoint"]
    named = [keys["directory"], *([] if keys.get("bucket") is None else [keys["bucket"]])]  # earlier versions had none
    return [open_store(schema.checkpoints_of(run, document["run_id"], each)) for each in named]


def read_skips(run: Path) -> Skips:
    """What a run is never fed again. Raises DataError where the list is broken."""
    path = run / SKIP_LIST
    try:
        return Skips(Skip.from_json(line) for line in read_lines(path))
    except (ValueError, TypeError, AttributeError, KeyError, DataError) as error:
        raise DataError(f"{path} is not a skip list ({error}): restore it from a copy") from error


def refuse_other_identity(was: dict[str, Any], job: schema.Job, where: str) -> None:
    """Raise ConfigError, with the difference, where the identity keys of `where` are not this job's.

    Where the shards lie may change; that they are the same shards is what the data cursor proves. A key that the
    version which wrote `was` did not have had its default, in effect.
    """
    was, now, defaults = redacted(was), redacted(schema.identity(job)), schema.identity(schema.Job())
    if was.get("optim.schedule") in ("constant", "wsd"):  # as runs before 2026-11-25 wrote it
        was = {**was, "optim.schedule": "constant or wsd"}
    differences = [
        f"  {key}: {was.get(key, defaults[key])!r} there, {now[key]!r} here"
        for key in sorted(now)
        if key != "data.manifest" and was.get(key, defaults[key]) != now[key]
    ]
    if differences:
        raise ConfigError(
            f"{where} belongs to a run with another configuration:\n"
            + "\n".join(differences)
            + "\nrestore these values to resume it, or give this run another run_id or name"
        )


def config_sha256(job: schema.Job) -> str:
    """Digest of every key and value."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(job), sort_keys=True).encode()).hexdigest()


def _changes(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What is no part of the identity and differs, without what is secret."""
    before, after = flat(redacted(was)), flat(redacted(now))
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if not key.startswith(schema.IDENTITY) and before.get(key) != after.get(key)
    ]


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of dictionaries as dotted paths to its leaves."""
    leaves: dict[str, Any] = {}
    for name, value in node.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def read_config(run: Path) -> dict[str, Any]:
    """The stored configuration of a run directory. Raises DataError where there is none or it is broken."""
    path = run / "config.yaml"
    try:
        document = yaml.safe_load(path.read_text())
        version = document["format"]
    except OSError as error:
        raise DataError(f"{run} is not a run directory ({path} cannot be read: {error.strerror})") from error
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not the configuration of a run ({error}): restore it from a copy") from error
    if version > FORMAT:
        raise DataError(f"{path} has format {version}, this version reads up to {FORMAT}: upgrade gemcutter")
    return document

"""Which steps are kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from trainer.checkpoint.committed import (
    COMMIT,
    QUARANTINE,
    BrokenError,
    commit_of,
    committed_steps,
    files_by_step,
    is_committed,
    step_name,
)
from trainer.checkpoint.store import PARTIAL, Patient, Store, patient


def retain(
    place: Store | Path | str,
    keep_last: int,
    keep_every: int | None,
    keep_hours: float | None = None,
    needed: Collection[int] = (),
) -> list[int]:
    """Remove old committed steps, and what is left of tries that came to nothing, up to the latest commit.

    To be called by one process, once the latest commit was verified. Keeps the newest `keep_last`, each multiple of
    `keep_every`, the newest of each span of `keep_hours`, and those that are `needed`; of those in quarantine the ones
    that are newer than the oldest of the newest `keep_last`. A step loses its COMMIT first, so that it is never seen
    half removed. Returns the steps that are left.

    Raises OSError or DataError where storage does not answer.
    """
    store = patient(place)
    files = files_by_step(store)
    steps = [step for step in files if is_committed(store, step, files[step])]
    if not steps:
        return []
    newest = steps[-keep_last:]
    kept = {*newest, *(step for step in steps if keep_every and step % keep_every == 0), *(set(steps) & set(needed))}
    kept |= _newest_of_spans(store, steps, keep_hours) if keep_hours else set()
    for step, names in files.items():
        aside = any(name.endswith(f"/{QUARANTINE}") for name in names)
        if step < steps[-1] and step not in kept and not (aside and step >= newest[0]):
            gone = sorted(names, key=lambda name: name != COMMIT)
        else:
            gone = _leftovers(store, step, names) if step in kept else []
        for name in gone:
            store.delete(f"{step_name(step)}/{name}")
    return sorted(kept)


def _leftovers(store: Patient, step: int, names: list[str]) -> list[str]:
    """Files in a committed step that are neither of the attempt that was committed nor of one in quarantine."""
    gone = [name for name in names if name.endswith(PARTIAL)]
    attempts = {name.split("/")[0] for name in names if "/" in name}
    attempts -= {name.split("/")[0] for name in names if name.endswith(f"/{QUARANTINE}")}
    if len(attempts) > 1:
        try:
            attempts.discard(commit_of(store, step)["attempt"])
        except BrokenError:
            return gone
        gone += [name for name in names if name.split("/")[0] in attempts and name not in gone]
    return gone


def _newest_of_spans(store: Patient, steps: list[int], hours: float) -> set[int]:
    """The newest step of each span of so many hours, counted from 1970; one whose time is not known is in none."""
    newest = {}
    for step in steps:
        try:
            time = commit_of(store, step).get("time")
        except BrokenError:
            continue
        if time is not None:
            newest[time // (hours * 3600)] = step
    return set(newest.values())


def withdraw(places: Iterable[Store | Path | str], after: int) -> None:
    """Make the committed steps after this one uncommitted, the latest first; by one process.

    Their files stay for whoever wants to look at them, until a later commit makes `retain` remove them. Raises OSError
    or DataError where storage does not answer.
    """
    for store in map(patient, places):
        for step in reversed(committed_steps(store)):
            if step > after:
                store.within(step_name(step)).delete(COMMIT)

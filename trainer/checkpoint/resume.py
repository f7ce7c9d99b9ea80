"""What a run goes on from: the newest step that is whole, the same on every process, and every byte of it verified.

A newer one that is broken is put into quarantine. That storage does not answer says nothing of what it holds: the run
then ends, and nothing is put aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conf.exits import DataError
from trainer.backend import Backend
from trainer.checkpoint.agreement import on_all
from trainer.checkpoint.committed import BrokenError, Committed, in_quarantine, opened
from trainer.checkpoint.newest import Tell, by_age
from trainer.checkpoint.quarantine import finish, quarantine
from trainer.checkpoint.store import Patient, Store, patient

_DIGITS = 12  # of a digest that processes compare: `Backend.agree` keeps whole numbers of up to 53 bits


def newest_sound(places: Sequence[Store | Path | str], backend: Backend, tell: Tell) -> Committed | None:
    """The newest committed step that is whole, its files verified; None where none was ever committed. All call it.

    Of the same step in several places the first place's is taken, and the next one's where that is broken. `tell` is
    called on the first process with each step that is put into quarantine, and the reason.

    Raises DataError, on every process, where none is whole, where storage does not answer, or processes see different
    checkpoints.
    """
    stores = [patient(place) for place in places]
    while (chosen := _chosen(stores, backend, tell)) is not None:
        store, checkpoint = chosen
        faults = _faults(checkpoint, backend)
        if not faults:
            return checkpoint
        _put_aside(store, backend, tell, checkpoint.broken(*faults[0]))
    return None


def verify_together(checkpoint: Committed, backend: Backend) -> None:
    """Hold every file against the manifest, each by one of the processes, which all call it with the same checkpoint.

    Raises DataError on all of them where one is broken, or storage does not answer.
    """
    if faults := _faults(checkpoint, backend):
        raise checkpoint.broken(*faults[0])


def _faults(checkpoint: Committed, backend: Backend) -> list[tuple[str, int]]:
    """The files that are broken and how, the same on every process."""
    rank, size = backend.processes.rank, backend.processes.size
    files = sorted(checkpoint.files, key=lambda name: (-checkpoint.files[name]["bytes"], name))
    own = on_all(backend, lambda: {name: checkpoint.fault(name) for name in files[rank::size]})
    faults = backend.agree([own.get(name, 0) for name in files]) if files else []
    found = [(name, int(fault)) for name, fault in zip(files, faults, strict=True) if fault]
    if not found:
        checkpoint.verified.update(files)
    return found


def _chosen(stores: Sequence[Patient], backend: Backend, tell: Tell) -> tuple[Patient, Committed] | None:
    """The newest step whose manifest is whole, as the first process sees it and all others, too; and where it lies."""
    first = backend.processes.rank == 0
    chosen = on_all(backend, lambda: _choose(stores, tell) if first else None)
    said = [0, -1, 0] if first else [0, 0, 0]
    if chosen is not None:
        place, checkpoint = chosen
        said = [place, checkpoint.step, _number(checkpoint.sha256)]
    place, step, number = map(int, backend.agree(said))
    if step < 0:
        return None
    return stores[place], on_all(backend, lambda: chosen[1] if chosen else _same(stores[place], step, number))


def _put_aside(store: Patient, backend: Backend, tell: Tell, broken: BrokenError) -> None:
    """Put a step into quarantine, by the first process; told before, so that no death in between hides it."""

    def put() -> None:
        if backend.processes.rank == 0:
            tell(broken.step, broken.reason)
            quarantine(store, broken.step, broken.reason)

    on_all(backend, put)


def _choose(stores: Sequence[Patient], tell: Tell) -> tuple[int, Committed] | None:
    """The newest step whose manifest is whole, and the number of its place. None: none was ever committed.

    Those that are newer are put into quarantine. Raises DataError where steps are there, and none is left.
    """
    for store in stores:
        finish(store)
    for step, store in by_age(stores):
        try:
            return stores.index(store), opened(store, step)
        except BrokenError as broken:
            tell(step, broken.reason)
            quarantine(store, step, broken.reason)
    if aside := [found for store in stores for found in in_quarantine(store).items()]:
        steps = "; ".join(f"step {step}: {reason}" for step, reason in aside)
        raise DataError(
            f"no checkpoint in {' or '.join(map(str, stores))} is whole ({steps}): restore one from a copy; or, to "
            "begin anew, move that folder away or give the run another run_id"
        )
    return None


def _same(store: Patient, step: int, number: int) -> Committed:
    """The step that the first process chose, as this one sees it."""
    checkpoint = opened(store, step)
    if _number(checkpoint.sha256) != number:
        raise DataError(f"processes see different checkpoints of step {step} in {store}: it is not one folder to all")
    return checkpoint


def _number(digest: str) -> int:
    return int(digest[:_DIGITS], 16)

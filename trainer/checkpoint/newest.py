"""Which step of a run is its newest, wherever it lies: the same to who goes on from it and to who only reads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from conf.exits import DataError
from trainer.checkpoint.committed import BrokenError, Committed, committed_steps, find, opened
from trainer.checkpoint.store import Patient, Store, patient

Tell = Callable[[int, str], None]  # of a step that is broken, and the reason


def by_age(stores: Sequence[Patient]) -> Iterator[tuple[int, Patient]]:
    """Every committed step and where it lies: the newest first, and of equal ones that of the first place."""
    there = [(step, -place) for place, store in enumerate(stores) for step in committed_steps(store)]
    return ((step, stores[-place]) for step, place in sorted(there, reverse=True))


def steps_of(places: Sequence[Store | Path | str]) -> list[int]:
    """Steps that are committed in any of some places, oldest first. Raises DataError where storage does not answer."""
    return sorted({step for place in places for step in committed_steps(place)})


def say_broken(step: int, reason: str) -> None:
    """Tell who only reads, on the terminal."""
    print(f"gemcutter: step {step} is BROKEN: {reason}", file=sys.stderr)


def newest(
    places: Sequence[Store | Path | str],
    step: int | None = None,
    *,
    every_byte: bool = False,
    tell: Tell = say_broken,
) -> Committed | None:
    """The newest committed step that is whole, or the one that is asked for, for who only reads: nothing is changed.

    Only its manifest is verified, or every byte. None where no step was ever committed.

    Raises BrokenError where none is whole; DataError where the step that is asked for is not committed anywhere, or
    storage does not answer that may have it.
    """
    stores = [patient(place) for place in places]
    if step is None:
        candidates = by_age(stores)
    else:
        candidates = ((step, store) for store in stores if step in committed_steps(store))
    first: BrokenError | None = None
    for number, store in candidates:
        try:
            found = opened(store, number)
            if every_byte:
                found.verify()
        except BrokenError as broken:
            tell(number, broken.reason)
            first = first or broken
        else:
            return found
    if first is not None:
        raise first
    if step is None:
        return None
    raise not_committed(stores, step)


def not_committed(stores: Sequence[Patient], step: int) -> DataError:
    """That none of them has this step, and which ones they have."""
    return DataError("; and ".join(dict.fromkeys(_said(store, step) for store in stores)))


def _said(store: Patient, step: int) -> str:
    """Why a step is not committed there."""
    try:
        find(store, step)
    except DataError as error:
        return str(error)
    return f"step {step} was committed in {store} just now: try again"

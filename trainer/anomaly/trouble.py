"""What is wrong with a run so that more steps would not mend it."""

from __future__ import annotations

from dataclasses import dataclass

from conf.exits import DivergedError


class Trouble(DivergedError):
    """Every process raises it after the same step, with the same facts; says what was seen."""


class Unstable(Trouble):
    """Too many steps had to be skipped: of the steps from `first` to `last`."""

    def __init__(self, what: str, first: int, last: int) -> None:
        super().__init__(what)
        self.first, self.last = first, last


@dataclass(frozen=True)
class Flaw:
    """Something that does not have the bits it should have.

    ranks  of the processes that may have changed it: one, or several where their copies are too few to tell
    """

    what: str
    ranks: tuple[int, ...]


class Corrupt(Trouble):
    """Bits changed that no computation changed, or a computation gave other bits than it gave before.

    state  whether parameters or moments are wrong, and not only what a step was about to do with them
    """

    def __init__(self, what: str, flaws: list[Flaw], hosts: dict[int, str], state: bool) -> None:
        super().__init__(what)
        self.flaws, self.hosts, self.state = flaws, hosts, state

"""Looks for the fastest job that fits, over rows of a micro-batch, recomputation and mesh.

On TPU hardware the compiler is asked about each, so few are tried: each way starts with a row for each chip and doubles
its rows until they do not fit. Memory is not monotone in them, so some between the last that fit and the first that did
not are tried as well, and some just above. A way that could not be the fastest, did it nothing but its products, gets
no more rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conf import schema
from conf.exits import ConfigError
from trainer.plan.candidates import Candidate, Way, by_formulas, ways
from trainer.plan.planned import Plan
from trainer.plan.tpu.compiled import compiled_plan
from trainer.plan.tpu.compiler import CompilerFailed
from trainer.plan.tpu.step import Compiler

COMPILES = 40  # at most
FORMULAS = 1000
NEIGHBOURS = 6  # rows tried of a way beyond doubling
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sweep:
    """What was tried, best first, and whether all of it has the job's tokens_per_step."""

    candidates: list[Candidate]
    keeps_batch: bool

    @property
    def best(self) -> Candidate | None:
        """The one to take; None where none fits."""
        return next((one for one in self.candidates if one.fits), None)


def sweep(job: schema.Job, planned: Plan, compiled: bool, say: Say) -> Sweep:
    """The candidates, compiled or by formulas; `say` gets a line for each that is compiled.

    Raises ConfigError where no time is known to rank them by.
    """
    if planned.hardware is None:
        raise ConfigError("plan.sweep=true looks for the fastest job on a machine or slice: name it with hardware=...")
    if planned.time is None:
        raise ConfigError("plan.sweep=true ranks by time, and the catalog has peaks of bf16 only: use precision=bf16")
    every, keeps = ways(job, planned)
    if not compiled:
        _Search(every, FORMULAS, by_formulas, lambda line: None).run()
    else:
        with Compiler() as compiler:

            def ask(changes: dict[str, object], other: schema.Job) -> Candidate:
                plain = by_formulas(changes, other)
                try:
                    return Candidate(changes, plain.planned, compiled_plan(compiler, other, plain.planned))
                except CompilerFailed as error:
                    return Candidate(changes, plain.planned, failed=str(error))

            _Search(every, COMPILES, ask, say).run()
    tried = [one for way in every for one in way.tried.values()]
    return Sweep(sorted(tried, key=lambda one: (one.fits, *one.rank), reverse=True), keeps)


class _Search:
    """Asks about candidates, so many at most."""

    def __init__(
        self, every: list[Way], most: int, ask: Callable[[dict[str, object], schema.Job], Candidate], say: Say
    ) -> None:
        self._ways, self._most, self._ask, self._say = every, most, ask, say
        self._asked, self._best = 0, 0.0

    def run(self) -> None:
        """Fill `tried` of each way."""
        for way in self._ways:
            self._first(way)
        while waiting := [way for way in self._ways if not way.closed]:
            for way in sorted(waiting, key=lambda way: max(one.rank for one in way.tried.values()), reverse=True):
                most = max(way.tried)
                rows = way.from_rows(2 * most) if way.tried[most].fits and self._hopeful(way) else None
                way.closed = rows is None or not self._try(way, rows)
        for way in sorted(self._ways, key=lambda way: max((one.rank for one in way.fitting), default=()), reverse=True):
            if way.fitting and self._hopeful(way):
                self._neighbours(way)

    def _first(self, way: Way) -> None:
        """A row for each chip, or the most below that fit."""
        rows = way.from_rows(way.axes["tensor"]) or way.from_rows(way.axes["tensor"], -1)
        while rows is not None:
            if self._try(way, rows):
                return
            if rows not in way.tried:
                break
            rows = way.from_rows(rows // 2, -1)
        way.closed = True

    def _neighbours(self, way: Way) -> None:
        """By halves between what fits and what does not, and then just above what fits."""
        for number in range(NEIGHBOURS):
            fits = max(rows for rows, one in way.tried.items() if one.fits)
            above = [rows for rows, one in way.tried.items() if rows > fits]
            if not above:
                return
            halfway = (fits + min(above)) // 2
            options = [halfway, *range(fits + 1, fits + 1 + number)]
            rows = next((n for n in options if n > fits and n not in way.tried and way.at(n) is not None), None)
            if rows is None or self._asked >= self._most:
                return
            self._try(way, rows)

    def _hopeful(self, way: Way) -> bool:
        """Whether its products alone would let it be the fastest."""
        known = [one.planned for one in way.tried.values() if one.planned.time is not None]
        return any(one.time and one.tokens / one.time.compute > 0.999 * self._best for one in known)

    def _try(self, way: Way, rows: int) -> bool:
        """Whether so many rows fit; where they cannot be at all, nothing is noted."""
        found = way.at(rows)
        if found is None or self._asked >= self._most:
            return False
        try:
            one = self._ask(*found)
        except ConfigError:  # chips cannot share the model so
            return False
        self._asked += 1
        way.tried[rows] = one
        if one.fits:
            self._best = max(self._best, one.tokens_per_second)
        self._say(f"{self._asked}. {described(one)}")
        return one.fits


def overrides(one: Candidate) -> str:
    """Its changes, to be pasted behind a command."""
    return " ".join(f"{path}={value}" for path, value in one.changes.items())


def described(one: Candidate) -> str:
    """A candidate in a line."""
    if one.failed:
        return f"{overrides(one)}: the compiler failed"
    memory = "?" if one.memory is None else f"{one.memory / 2**30:.2f}"
    speed = f", at most {one.tokens_per_second:,.0f} tokens/s" if one.fits else ""
    return f"{overrides(one)}: {memory} GiB, {'fits' if one.fits else 'does not fit'}{speed}"

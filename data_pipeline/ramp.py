"""How many samples each step reads: the same number throughout, or stages of numbers.

Knows nothing of what a sample is, nor which ones a step reads: they are counted, in the order in which they are read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from conf.exits import ConfigError


@dataclass(frozen=True)
class Ramp:
    """Stages of (first step, samples of each step from there on); steps count from 0, where the first stage begins."""

    stages: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.stages]
        if firsts[:1] != [0] or any(later <= earlier for earlier, later in pairwise(firsts)):
            raise ValueError(f"stages begin at step 0, and each after the one before: {self.stages}")

    @classmethod
    def constant(cls, rows: int) -> Ramp:
        """The same number throughout."""
        return cls(((0, rows),))

    def rows(self, step: int) -> int:
        """Samples of a step."""
        return self.stages[bisect_right(self.stages, step, key=lambda stage: stage[0]) - 1][1]

    def before(self, step: int) -> int:
        """Samples of all steps before this one."""
        ends = [first for first, _ in self.stages[1:]] + [step]
        return sum(max(0, min(end, step) - first) * rows for (first, rows), end in zip(self.stages, ends, strict=True))

    def find(self, sample: int) -> tuple[int, int]:
        """The step that reads the sample of this number, and its number within the step."""
        for first, rows in reversed(self.stages):
            if (within := sample - self.before(first)) >= 0:
                step, number = divmod(within, rows)
                return first + step, number
        raise ValueError(f"{sample=} is negative")

    def check(self, was: Sequence[Sequence[int]] | None, steps: int) -> None:
        """Raise ConfigError, with the difference, unless the first `steps` steps had these numbers of samples.

        `was` is the stages at that time; None: of a run that had one. Stages that begin later may differ.
        """
        then = [stage for first, rows in was or self.stages[:1] if (stage := (first, rows))[0] < max(1, steps)]
        now = [stage for stage in self.stages if stage[0] < max(1, steps)]
        if then != now:
            raise ConfigError(
                f"batch_ramp differs for the {steps} steps that are done: {_shown(then)} there, {_shown(now)} here. "
                f"Restore it to resume the run; new stages may begin at step {steps + 1}"
            )


def _shown(stages: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{rows} rows from step {first + 1} on" for first, rows in stages)

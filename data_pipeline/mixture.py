"""Which source the next sample comes from: a pure function of the table of stages, in closed form.

Knows nothing of tokens, rows or files. A stage gives weights to sources from a sample on. Within it, samples are split
by a binary tree over its sources: the k-th sample that reaches a fork goes left when floor((k + 1) w / W) exceeds
floor(k w / W), where w of the weight W lies to the left. So at every fork the left side has floor(k w / W) of the first
k samples: each source's count is known at any sample without counting, stays within one sample a fork of its share, and
is exact wherever the share is a whole number. All sums are of whole numbers of any size; nothing is rounded.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True)
class Stage:
    """Weights of the sources (0: not read) from a sample on, until the next stage begins."""

    first: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class _Fork:
    left: _Fork | int  # an int is a source
    right: _Fork | int
    weight: int  # of the left side
    total: int


class Mixture:
    """The table of stages, all over the same list of sources."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages or stages[0].first != 0:
            raise ValueError("the first stage begins at sample 0")
        if any(later.first <= earlier.first for earlier, later in pairwise(stages)):
            raise ValueError("each stage begins after the one before")
        self.stages = tuple(stages)
        self._firsts = [stage.first for stage in stages]
        self._trees = [_tree([n for n, weight in enumerate(s.weights) if weight], s.weights) for s in stages]
        self._before = [[0] * len(stages[0].weights)]  # samples of each source before each stage
        for number, stage in enumerate(stages[1:]):
            self._before.append(self._counts(number, stage.first))

    def locate(self, sample: int) -> tuple[int, int]:
        """The source of a sample, and how many samples of that source come before it."""
        stage = self._stage(sample)
        node, k = self._trees[stage], sample - self._firsts[stage]
        while isinstance(node, _Fork):
            before = k * node.weight // node.total
            if (k + 1) * node.weight // node.total > before:
                node, k = node.left, before
            else:
                node, k = node.right, k - before
        return node, self._before[stage][node] + k

    def counts(self, sample: int) -> list[int]:
        """Samples of each source before a sample."""
        return self._counts(self._stage(sample), sample)

    def sample(self, source: int, number: int) -> int | None:
        """The sample that is the source's `number`-th (0, 1, ...); None where the source is never read so often."""
        for stage in reversed(range(len(self.stages))):
            if number < self._before[stage][source]:
                continue
            if not self.stages[stage].weights[source]:
                continue
            sample = self._firsts[stage] + _position(self._trees[stage], source, number - self._before[stage][source])
            last = stage == len(self.stages) - 1
            return sample if last or sample < self._firsts[stage + 1] else None
        return None

    def _stage(self, sample: int) -> int:
        return bisect_right(self._firsts, sample) - 1 if len(self._firsts) > 1 else 0

    def _counts(self, stage: int, sample: int) -> list[int]:
        counts = list(self._before[stage])
        pending = [(self._trees[stage], sample - self._firsts[stage])]
        while pending:
            node, k = pending.pop()
            if isinstance(node, _Fork):
                left = k * node.weight // node.total
                pending += [(node.left, left), (node.right, k - left)]
            else:
                counts[node] += k
        return counts


def whole_weights(weights: Mapping[str, float], names: Sequence[str]) -> tuple[int, ...]:
    """Weights of the named sources as whole numbers in the same proportion, exactly as they were written."""
    fractions = [Fraction(repr(float(weights.get(name, 0)))) for name in names]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*whole)
    return tuple(weight // divisor for weight in whole)


def _tree(sources: list[int], weights: Sequence[int]) -> _Fork | int:
    if len(sources) == 1:
        return sources[0]
    half = len(sources) // 2
    left, right = sources[:half], sources[half:]
    weight, total = sum(weights[n] for n in left), sum(weights[n] for n in sources)
    return _Fork(_tree(left, weights), _tree(right, weights), weight, total)


def _position(tree: _Fork | int, source: int, number: int) -> int:
    """Which of the samples that reach the root is the source's `number`-th."""
    if not isinstance(tree, _Fork):
        return number
    if source in _leaves(tree.left):
        inner = _position(tree.left, source, number)
        return -(-(inner + 1) * tree.total // tree.weight) - 1  # the k with floor(k w / W) = inner that goes left
    inner = _position(tree.right, source, number)
    return inner * tree.total // (tree.total - tree.weight)  # the k with ceil(k (W - w) / W) = inner that goes right


def _leaves(tree: _Fork | int) -> set[int]:
    return _leaves(tree.left) | _leaves(tree.right) if isinstance(tree, _Fork) else {tree}

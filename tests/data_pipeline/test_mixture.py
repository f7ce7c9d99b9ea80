"""Promises of the mixture: closed-form counts that equal counting, near their shares, exact in the end, appendable."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.mixture import Mixture, Stage, whole_weights


@st.composite
def tables(draw: st.DrawFn) -> list[Stage]:
    sources = draw(st.integers(1, 9))
    weights = st.lists(st.integers(0, 20), min_size=sources, max_size=sources).filter(any)
    stages, first = [], 0
    for _ in range(draw(st.integers(1, 4))):
        stages.append(Stage(first, tuple(draw(weights))))
        first += draw(st.integers(1, 60))
    return stages


@given(tables())
def test_closed_form_counts_are_those_of_counting(stages: list[Stage]) -> None:
    mixture = Mixture(stages)
    counted = [0] * len(stages[0].weights)
    for sample in range(250):
        assert mixture.counts(sample) == counted
        source, number = mixture.locate(sample)
        assert number == counted[source]
        assert mixture.sample(source, number) == sample  # and back
        counted[source] += 1


@given(tables(), st.integers(0, 10**15))
def test_a_source_is_never_far_from_its_share(stages: list[Stage], sample: int) -> None:
    weights = stages[0].weights
    forks = math.ceil(math.log2(len(weights))) if len(weights) > 1 else 0
    for count, weight in zip(Mixture(stages[:1]).counts(sample), weights, strict=True):
        assert abs(count * sum(weights) - sample * weight) <= forks * sum(weights)


@given(tables(), st.integers(1, 10**12))
def test_counts_are_exact_after_whole_periods(stages: list[Stage], periods: int) -> None:
    weights = stages[0].weights
    assert Mixture(stages[:1]).counts(periods * sum(weights)) == [periods * weight for weight in weights]


def test_there_is_no_ceiling_at_64_bits() -> None:
    mixture = Mixture([Stage(0, (10**18 + 1, 3 * 10**18, 7))])
    sample = 10**40
    source, number = mixture.locate(sample)
    assert mixture.sample(source, number) == sample
    assert sum(mixture.counts(sample)) == sample


@given(tables(), st.integers(1, 400))
def test_appending_a_stage_leaves_history_as_it_was(stages: list[Stage], later: int) -> None:
    """Changed mixtures lost and repeated samples elsewhere: Megatron-LM #457, Energon #17, datasets #7387."""
    first = stages[-1].first + later
    appended = Mixture([*stages, Stage(first, tuple(reversed(stages[-1].weights)))])
    before = Mixture(stages)
    assert [appended.locate(sample) for sample in range(first)] == [before.locate(sample) for sample in range(first)]
    # And nothing is lost or read twice where the weights change: each source goes on where it stood.
    counted = before.counts(first)
    for sample in range(first, first + 60):
        source, number = appended.locate(sample)
        assert number == counted[source]
        counted[source] += 1


def test_a_number_that_is_never_reached_has_no_sample() -> None:
    mixture = Mixture([Stage(0, (1, 1)), Stage(10, (0, 1))])
    assert mixture.sample(0, 4) == 9 or mixture.sample(0, 4) == 8
    assert mixture.sample(0, 5) is None
    assert mixture.sample(1, 5) == 10


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(1e-3, 1e6), min_size=1))
def test_weights_are_taken_as_they_were_written(weights: dict[str, float]) -> None:
    whole = dict(zip("abcd", whole_weights(weights, "abcd"), strict=True))
    assert {name for name, weight in whole.items() if weight} == set(weights)
    (name, weight), *others = weights.items()
    for other, value in others:
        assert whole[name] / whole[other] == pytest.approx(weight / value, rel=1e-15)


def test_tenths_become_tenths() -> None:
    assert whole_weights({"web": 0.7, "code": 0.3}, ["code", "web", "books"]) == (3, 7, 0)


@pytest.mark.parametrize("firsts", [[], [1], [0, 5, 5], [0, 7, 3]])
def test_stages_out_of_order_are_an_error(firsts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"stage"):
        Mixture([Stage(first, (1,)) for first in firsts])

"""Promises of a ramp: steps, sizes and samples as one would count them one by one, whoever shares a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.exits import ConfigError
from data_pipeline.feeder import Share
from data_pipeline.ramp import Ramp
from data_pipeline.skips import Skip, Skips

SHARED = 36  # of this every size is a multiple, so that several worlds can share it


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    firsts = [0, *sorted(draw(st.sets(st.integers(1, 30), max_size=4)))]
    return Ramp(tuple((first, SHARED * draw(st.integers(1, 4))) for first in firsts))


@given(ramps())
def test_samples_are_those_of_counting(ramp: Ramp) -> None:
    sizes = dict(ramp.stages)
    sample, rows = 0, 0
    for step in range(40):
        rows = sizes.get(step, rows)
        assert ramp.rows(step) == rows
        assert ramp.before(step) == sample
        for number in (0, rows // 2, rows - 1):
            assert ramp.find(sample + number) == (step, number)
        sample += rows


@dataclass
class Asked:
    """Stands for the stream: gives back what it was asked to build."""

    skips: Skips = field(default_factory=Skips)

    def build(self, wanted: Sequence[tuple[Sequence[int], int]], rows: int) -> list[tuple[list[int], int]]:
        assert all(len(samples) == rows for samples, _ in wanted)
        return [(list(samples), done) for samples, done in wanted]


@given(
    ramp=ramps(),
    world=st.sampled_from([1, 2, 3, 4]),
    micro_batch=st.sampled_from([1, 3]),
    step=st.integers(0, 35),
    passed_over=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 90)), max_size=3),
)
def test_every_world_reads_the_samples_of_a_step_once_from_any_step_on(
    ramp, world, micro_batch, step, passed_over
) -> None:
    skips = Skips(Skip(0, samples=(first, first + count)) for first, count in passed_over)
    read = [sample for sample in range(8000) if not skips.leaves_out(sample)]
    before = ramp.before(step)
    start = read[before - 1] + 1 if before else 0  # samples done when the step begins
    ranks = [iter(Share(Asked(skips), start, step, ramp, micro_batch, rank, world)) for rank in range(world)]
    for each in range(step, step + 6):
        parts = ramp.rows(each) // (micro_batch * world)
        batches = [[next(rank) for rank in ranks] for _ in range(parts)]
        samples = [sample for part in batches for batch, _ in part for sample in batch]
        assert samples == read[ramp.before(each) : ramp.before(each + 1)]
        done = [{done for _, done in part} for part in batches]
        now, then = (read[count - 1] + 1 if count else 0 for count in (ramp.before(each + 1), ramp.before(each)))
        assert done == [{then}] * (parts - 1) + [{now}]  # the cursor moves with the last micro-batch of a step


def test_what_was_cannot_change_and_what_comes_can() -> None:
    was = [[0, 12], [5, 24], [9, 48]]
    Ramp(((0, 12), (5, 24), (9, 48))).check(was, 20)
    Ramp(((0, 12), (5, 24), (9, 48), (20, 12))).check(was, 20)  # step 21 is to come
    Ramp(((0, 12), (5, 24))).check(was, 9)
    Ramp(((0, 12),)).check(None, 100)
    with pytest.raises(ConfigError, match=r"the 10 steps that are done: .*48 rows from step 10 on there, 12 rows from"):
        Ramp(((0, 12), (5, 24))).check(was, 10)
    with pytest.raises(ConfigError, match="new stages may begin at step 21"):
        Ramp(((0, 12), (5, 24), (9, 48), (19, 12))).check(was, 20)
    with pytest.raises(ConfigError, match="batch_ramp differs"):
        Ramp(((0, 12), (4, 24))).check(None, 5)


@pytest.mark.parametrize("stages", [(), ((1, 12),), ((0, 12), (0, 24)), ((0, 12), (5, 12), (4, 24))])
def test_stages_out_of_order_are_refused(stages) -> None:
    with pytest.raises(ValueError, match="stages begin at step 0"):
        Ramp(stages)

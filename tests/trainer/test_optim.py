"""Promises of the schedule and the update: the formulas of their papers, and torch's AdamW."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conf.schema import Job, Model, Optim
from trainer.model import Gemma, build_config
from trainer.optim.optimizer import build_optimizer, decays, lr_at, set_lr

FINITE = {"allow_nan": False, "allow_infinity": False}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Optim, int]:
    steps = draw(st.integers(1, 400))
    warmup = draw(st.integers(0, steps))
    return Optim(
        peak_lr=draw(st.floats(1e-6, 1.0, **FINITE)),
        warmup_steps=warmup,
        schedule=draw(st.sampled_from(["cosine", "wsd", "constant"])),
        final_lr_ratio=draw(st.floats(0, 1, **FINITE)),
        decay_steps=draw(st.none() | st.integers(0, steps - warmup)),
    ), steps


def rates(optim: Optim, steps: int) -> list[float]:
    return [lr_at(optim, step, steps) for step in range(steps)]


@given(schedules())
def test_the_rate_stays_between_zero_and_its_peak(made: tuple[Optim, int]) -> None:
    optim, steps = made
    for step, rate in enumerate(rates(optim, steps)):
        assert 0 <= rate <= optim.peak_lr * (1 + 1e-12)
        if step >= optim.warmup_steps:
            assert rate >= optim.peak_lr * (optim.final_lr_ratio - 1e-12)
        else:
            assert rate > 0


@given(schedules())
def test_the_rate_rises_in_warm_up_and_never_after(made: tuple[Optim, int]) -> None:
    optim, steps = made
    if optim.schedule == "wsd" and optim.decay_steps is None:
        optim = dataclasses.replace(optim, decay_steps=(steps - optim.warmup_steps) // 2)
    all_rates = rates(optim, steps)
    rising, falling = all_rates[: optim.warmup_steps], all_rates[optim.warmup_steps :]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a >= b for a, b in itertools.pairwise(falling))
    # linear: equal differences
    assert all(rate == pytest.approx((n + 1) * rising[0], rel=1e-12) for n, rate in enumerate(rising))


@given(schedules())
def test_the_end_points_are_exact(made: tuple[Optim, int]) -> None:
    optim, steps = made
    all_rates = rates(optim, steps)
    final = optim.peak_lr * optim.final_lr_ratio
    after = steps - optim.warmup_steps  # updates that are not warm-up
    if optim.schedule == "constant" and after:
        assert set(all_rates[optim.warmup_steps :]) == {optim.peak_lr}
    if optim.schedule == "cosine" and after > 1:
        assert all_rates[optim.warmup_steps] == pytest.approx(optim.peak_lr, rel=1e-12)
        assert all_rates[-1] == pytest.approx(final, rel=1e-9, abs=1e-15)
    if optim.schedule == "wsd" and optim.decay_steps:
        assert all_rates[-1] == pytest.approx(final, rel=1e-9, abs=1e-15)
        assert all(rate == optim.peak_lr for rate in all_rates[optim.warmup_steps : steps - optim.decay_steps])


def test_known_values() -> None:
    optim = Optim(peak_lr=1.0, warmup_steps=3, final_lr_ratio=0.2)
    assert rates(optim, 8) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8828427, 0.6, 0.3171573, 0.2])
    wsd = dataclasses.replace(optim, schedule="wsd", decay_steps=4)
    assert rates(wsd, 8) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])
    tenth = Optim(peak_lr=1.0, warmup_steps=0, schedule="wsd", final_lr_ratio=0.0)
    assert [lr_at(tenth, step, 40) for step in (35, 36, 39)] == pytest.approx([1.0, 0.75, 0.0])


@given(schedules(), st.randoms(use_true_random=False))
def test_the_rate_is_a_function_of_the_step(made: tuple[Optim, int], random) -> None:
    """Asked in any order, as a resume does, it gives the same."""
    optim, steps = made
    order = list(range(steps))
    random.shuffle(order)
    assert {step: lr_at(optim, step, steps) for step in order} == dict(enumerate(rates(optim, steps)))


def small_model() -> Gemma:
    job = Job()
    job.model.num_layers, job.model.d_model, job.model.d_ff, job.model.head_dim = 2, 32, 48, 16
    return Gemma(build_config(job.model, 256))


MATRICES = {
    "attention.q.weight", "attention.k.weight", "attention.v.weight", "attention.o.weight",
    "feed_forward.gate.weight", "feed_forward.up.weight", "feed_forward.down.weight",
}  # fmt: skip
PRE_NORMS = {"attention_norm.weight", "feed_forward_norm.weight"}
POST_NORMS = {"attention_post_norm.weight", "feed_forward_post_norm.weight"}
NORMS_OF = {
    1: PRE_NORMS,
    2: PRE_NORMS | POST_NORMS,
    3: PRE_NORMS | POST_NORMS | {"attention.q_norm.weight", "attention.k_norm.weight"},
}


@pytest.mark.parametrize("wrapped", ["", "_checkpoint_wrapped_module."])
@pytest.mark.parametrize("size", ["gemma_2b", "gemma2_2b", "gemma3_1b"])
def test_matrices_of_blocks_decay_and_nothing_else(size: str, wrapped: str) -> None:
    """Every parameter of each generation by its name, so that a new one has to be placed."""
    with torch.device("meta"):
        model = Gemma(build_config(Model(size=size, num_layers=2), 256_000))
    blocks = [f"blocks.{n}." for n in range(2)]
    decayed = {block + name for block in blocks for name in MATRICES}
    exempt = {block + name for block in blocks for name in NORMS_OF[model.config.generation]}
    exempt |= {"embedding.weight", "final_norm.weight"}
    named = dict(model.named_parameters())
    assert named.keys() == decayed | exempt
    for name, _parameter in named.items():
        as_wrapped = re.sub(r"(blocks\.\d\.)", rf"\1{wrapped}", name)
        assert decays(as_wrapped) == (name in decayed), name


def test_the_optimizer_decays_what_the_rule_says() -> None:
    model = small_model()
    optimizer = build_optimizer(model, Optim(weight_decay=0.3))
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and name != "embedding.weight"
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), name
    assert any(value == 0.3 for value in decay.values())


def test_every_group_gets_the_rate_of_the_step() -> None:
    optimizer = build_optimizer(small_model(), Optim())
    set_lr(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_moments_made_ahead_change_no_update() -> None:
    """They are made before the first step so that a checkpoint can be loaded into them; AdamW would make them so."""
    model = small_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    other = small_model()
    other.load_state_dict(model.state_dict())
    optim = Optim(weight_decay=0.1)
    ours = build_optimizer(model, optim)
    plain = torch.optim.AdamW(
        [
            {"params": group["params"], "weight_decay": group["weight_decay"]}
            for group in build_optimizer(other, optim).param_groups
        ],
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    for number in range(3):
        torch.manual_seed(number)
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        plain.step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)

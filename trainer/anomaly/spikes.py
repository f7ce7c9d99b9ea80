"""Steps whose loss or gradient is no finite number, or stands out from those before: which, and how many are too many.

The host states limits for a step from what it knows of earlier ones, and the device leaves the update out where the
step exceeds them: the host goes on with the next step before it could know. This catches what clipping does not:
a gradient that is clipped still points where a few strange documents want it to.

As in OLMo 2 (arXiv 2501.00656; OLMo-core, `SkipStepOptimizer`: 6 deviations over 128 steps, of loss and norm), but with
median and median deviation of logarithms, which the outliers that they are to find do not move: of 128 steps a single
one of 100 times the norm raises mean and 6 standard deviations to 54 times the norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conf import schema
from data_pipeline.stream import TokenStream

if TYPE_CHECKING:
    from trainer.run import Run

_JUDGED = ("loss", "grad_norm")
_NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
_LEAST = 0.005  # deviation of a logarithm; where steps hardly differ at all, what is nothing must not stand out
_NONE = 1e-30  # in place of 0, the loss of a step that has no targets


@dataclass(frozen=True)
class Taken:
    """A step that was taken, as far as later ones are held against it. None: not finite, or no limit.

    stage  stages of the mixture begun with it, and its samples: steps of other stages say nothing of each other
    """

    step: int
    stage: tuple[int, int]
    loss: float | None
    grad_norm: float | None
    loss_limit: float | None
    grad_norm_limit: float | None
    skipped: bool

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Taken:
        return cls(**values | {"stage": tuple(values["stage"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def finite(self) -> bool:
        return self.loss is not None and self.grad_norm is not None


def limits(spike: schema.Spike, recent: Sequence[Taken], step: int, stage: tuple[int, int]) -> tuple[float, float]:
    """The largest loss and gradient norm of a step whose update is made; infinite where too few steps are known.

    A pure function of steps before the last one, which may still be computed: so a run that waited for it, since it was
    saved, and one that did not, or goes on from there, have the same limits.
    """
    if spike.sigmas is None:
        return math.inf, math.inf
    steps = range(step - 1 - spike.window, step - 1)
    known = [taken for taken in recent if taken.step in steps and taken.stage == stage and not taken.skipped]
    if len(known) < max(1, spike.window // 2):
        return math.inf, math.inf
    return (
        _limit([taken.loss or _NONE for taken in known], spike.sigmas),
        _limit([taken.grad_norm or _NONE for taken in known], spike.sigmas),
    )


def _limit(values: Sequence[float], sigmas: float) -> float:
    logs = [math.log(value) for value in values]
    middle = median(logs)
    deviation = _NORMAL * median(abs(log - middle) for log in logs)
    return math.exp(min(middle + sigmas * max(deviation, _LEAST), 700))


def limits_on_device(
    job: schema.Job, run: Run, samples_done: int, stream: TokenStream, device: torch.device
) -> Tensor | None:
    """`limits` of the coming step, which ends at a sample, as it takes them: [2] float32; None: there are none."""
    if job.spike.sigmas is None:
        return None
    stage = stage_of(run, run.step + 1, samples_done, stream)
    return torch.tensor(limits(job.spike, run.recent, run.step + 1, stage)).to(device)


def stage_of(run: Run, step: int, samples_done: int, stream: TokenStream) -> tuple[int, int]:
    """What `Taken.stage` is of a step that ends at a sample."""
    return stream.stages_begun(samples_done), run.ramp.rows(step - 1)


def take(job: schema.Job, run: Run, step: int, stage: tuple[int, int], values: Mapping[str, float]) -> Taken:
    """Count a step whose `loss`, `grad_norm` and `skipped` are known."""
    loss_limit, grad_norm_limit = limits(job.spike, run.recent, step, stage)
    taken = Taken(
        step=step,
        stage=stage,
        loss=_finite(values["loss"]),
        grad_norm=_finite(values["grad_norm"]),
        loss_limit=_finite(loss_limit),
        grad_norm_limit=_finite(grad_norm_limit),
        skipped=bool(values["skipped"]),
    )
    run.recent = [*run.recent, taken][-max(job.spike.window + 1, 2 * job.optim.max_skipped) :]
    run.skipped += taken.skipped
    run.in_a_row = run.in_a_row + 1 if taken.skipped else 0
    return taken


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def wrong(taken: Taken, values: Mapping[str, float]) -> str:
    """What is wrong with a skipped step, in words."""
    if not taken.finite:
        return ", ".join(f"{name}={values[name]}" for name in _JUDGED if not math.isfinite(values[name]))
    high = [
        f"{name}={values[name]:.4g} above {limit:.4g}"
        for name in _JUDGED
        if (limit := getattr(taken, f"{name}_limit")) is not None and values[name] > limit
    ]
    return ", ".join(high) or "a value at its limit"  # which is float32 on the device


def suspects(job: schema.Job, run: Run) -> list[Taken]:
    """The skipped ones among the last steps, of which too many make the run go back before the first of them."""
    return [taken for taken in run.recent[-2 * job.optim.max_skipped :] if taken.skipped]


def too_many(job: schema.Job, run: Run) -> tuple[int, str] | None:
    """The first of the last steps that are too many to go on, and why; None where they are not.

    So many in a row; or most of twice as many, where they are finite: the median stays above its limit, as it does
    after a spike that was let through and left the parameters where they should not be.
    """
    most, last = job.optim.max_skipped, run.recent[-1]
    if run.in_a_row >= most:
        why = f"as the last of {run.in_a_row} steps in a row (optim.max_skipped={most})"
        return last.step - run.in_a_row + 1, why
    high = [taken for taken in suspects(job, run) if taken.finite]
    if last.skipped and len(high) > most:
        why = f"as one of {len(high)} among the last {2 * most} (more than optim.max_skipped={most})"
        return high[0].step, why
    return None

"""One device, every way to compute a step: ten updates of a tiny Gemma of each generation, held against the CPU's.

All go through the native backend and the real step. Losses equal those of the CPU in fp32, without compilation or
recomputation, within 1e-5 in fp32 (sums in another order; no TF32), and within BF16 in bf16. Beside the matrix: a step
that is not finite changes nothing on the device, and a job resumes there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.schema import Job
from tests.gpu.checks import Check, NotRun, Place, held
from tests.trainer.mesh_steps import GENERATIONS, OPTIMIZERS, ROWS, batch_of, job_of, start, updates
from trainer.backend.native import Native
from trainer.optim.optimizer import moments_of
from trainer.sharded import own_part

# A quarter unit of bf16's last place: each logit is off by about a unit, a loss is the mean over some hundred tokens.
EXACT, BF16 = 1e-5, 2**-10


def checks(place: Place) -> dict[str, Check]:
    """Compiled ones last: they take longest."""
    eager, compiled = (
        {
            f"gemma{generation} {precision} {'compiled' if compile_ else 'eager'} remat {remat} {optimizer}": (
                functools.partial(matrix, generation, precision, compile_, remat, optimizer, place)
            )
            for generation, precision, remat, optimizer in itertools.product(
                GENERATIONS, ("fp32", "bf16"), ("none", "selective", "block"), OPTIMIZERS
            )
        }
        for compile_ in (False, True)
    )
    skips = {f"a step not finite, {name}": functools.partial(skip, name, place) for name in OPTIMIZERS}
    return {**eager, **skips, "resume": functools.partial(resume, place), **compiled}


def matrix(generation: int, precision: str, compile_: bool, remat: str, optimizer: str, place: Place) -> dict[str, Any]:
    """Losses of ten updates against the CPU's in fp32."""
    if compile_ and place.quick:
        raise NotRun("compiling takes longer than all else that --quick does")
    expected = _on_cpu()[optimizer, generation]
    job, backend = _on(place.device)
    job.precision, job.compile, job.remat, job.optim.name = precision, compile_, remat, optimizer
    torch.compiler.reset()  # else variants add up to more programs than one function may have
    losses = [update["loss"] for update in updates(generation, job, backend, steps=10)]
    off = max(abs(ours / theirs - 1) for ours, theirs in zip(losses, expected, strict=True))
    return held({"loss": (off, EXACT if precision == "fp32" else BF16)}) | {"losses": losses}


@functools.cache
def _on_cpu() -> dict[tuple[str, int], list[float]]:
    """What is right: losses by optimizer and generation."""
    job = job_of([1, 1, 1, 1])
    backend = Native("cpu", job)
    losses = {}
    for job.optim.name, generation in itertools.product(OPTIMIZERS, GENERATIONS):
        losses[job.optim.name, generation] = [update["loss"] for update in updates(generation, job, backend, steps=10)]
    backend.close()
    return losses


@functools.cache
def _on(device: str) -> tuple[Job, Native]:
    """The backend and the job that it reads; a process has one group at a time, so the CPU's comes and goes first."""
    _on_cpu()
    job = job_of([1, 1, 1, 1])
    return job, Native(device, job)


def skip(optimizer: str, place: Place) -> dict[str, Any]:
    """The second of three updates has infinite weights."""
    job, backend = _on(place.device)
    job.precision, job.compile, job.remat, job.optim.name = "bf16", False, "none", optimizer
    model, built, train_step = start(3, job, backend)

    def state() -> list[Tensor]:
        moments = [moment for parameter in model.parameters() for moment in moments_of(built, parameter).values()]
        counts = [state["step"] for state in built.state.values() if "step" in state]
        return [own_part(tensor.detach()).clone() for tensor in (*model.parameters(), *moments, *counts)]

    states, skipped = [], []
    for step in range(3):
        batch = batch_of(step, slice(0, ROWS))
        if step == 1:
            batch = dataclasses.replace(batch, weights_BS=batch.weights_BS * float("inf"))
        metrics = train_step(list(backend.feed([batch])))
        states.append(state())
        skipped.append(metrics["skipped"].item())
    assert skipped == [0, 1, 0], f"skipped: {skipped}"
    assert all(map(torch.equal, states[0], states[1])), "a skipped step changed parameters or the optimizer's state"
    assert not any(map(torch.equal, states[1][:1], states[2][:1])), "the step after it changed nothing"
    assert all(tensor.isfinite().all() for tensor in states[2])
    return {"skipped": skipped}


def resume(place: Place) -> dict[str, Any]:
    """A job that ended and went on, against one that did not end, on real shards.

    Losses and every tensor are equal bit for bit where the device gives that for one job twice; where it adds up
    gradients in another order each time, losses are equal within EXACT, and the result says so.
    """
    from tests.trainer.conftest import Lab, documents, environment, make_corpus

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = Lab(folder, make_corpus(folder / "corpus", documents(400), 512), environment(folder))
        changes = (f"backend.name={place.device}", "optim.schedule=constant", "remat=block", "optim.ema=0.5")
        try:
            whole = lab.train("whole", *changes, "steps=8")
            again = whole if place.device == "cpu" else lab.train("again", *changes, "steps=8")
            lab.train("ended", *changes, "steps=4")
            resumed = lab.train("ended", *changes, "steps=8")
        finally:
            lab.close()
        losses = {each.folder.name: each.column("loss") for each in (whole, again, resumed)}
        assert resumed.column("attempt") == [1] * 4 + [2] * 4
        repeats, exact = (_equal(whole.tensors(), each.tensors()) for each in (again, resumed))
    assert exact or not repeats, f"the resumed job differs, while the device repeats itself: {losses}"
    off = max(abs(ours / theirs - 1) for ours, theirs in zip(losses["ended"], losses["whole"], strict=True))
    found = held({"loss": (off, 0.0 if repeats else EXACT)})
    return found | {"the device repeats itself": repeats, "equal bit for bit": exact, "losses": losses}


def _equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

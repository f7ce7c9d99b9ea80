"""Promises of one update: what a plain, unsharded model and torch's own AdamW and clipping give."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from conf.schema import Job
from data_pipeline.batch import Batch
from data_pipeline.tokenizer import Tokenizer
from trainer.backend import Backend, choose
from trainer.build import open_stream
from trainer.model import Gemma, build_config
from trainer.model.gemma import init_weights
from trainer.optim.optimizer import build_optimizer, lr_at, set_lr
from trainer.step import make_train_step

# Sums of float32 in another order: a few roundings of 2^-24 = 6e-8 each.
EXACT = 1e-6


@pytest.fixture
def job(lab) -> Job:
    # AdamW's first update is g / (|g| + eps): where g is nothing but rounding, an eps of 1e-8 lets its sign decide.
    constant = ("optim.warmup_steps=0", "optim.schedule=constant")
    return lab.job("step", *constant, "optim.clip_norm=0.5", "optim.eps=1e-5")


@pytest.fixture
def backend(job: Job, one_thread: None) -> Iterator[Backend]:
    made = choose(job)
    yield made
    made.close()


def model_of(job: Job, backend: Backend | None) -> Gemma:
    """As a run makes it, sharded; without a backend a plain module."""
    config = build_config(job.model, 512)
    if backend is None:
        model = Gemma(config)
    else:
        with torch.device("meta"):
            model = Gemma(config)
        backend.shard(model)
    init_weights(model, job.seed)
    return model


def batches(job: Job, micro_batch: int, steps: int) -> list[list[Batch]]:
    per_step = 12 // micro_batch
    made = open_stream(job, job.data.manifest, Tokenizer.load(str(job.tokenizer.model)))
    stream = made.batches(rows_per_step=12, micro_batch=micro_batch, rank=0, world=1)
    taken = list(itertools.islice(stream, per_step * steps))
    stream.close()
    return [taken[n * per_step : (n + 1) * per_step] for n in range(steps)]


def parameters(model: Gemma) -> dict[str, torch.Tensor]:
    """Whole, whether sharded or not."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def scalars(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in metrics.items() if name != "counts_K"}


def train(job: Job, backend: Backend, micro_batch: int, steps: int = 1) -> tuple[list[dict[str, float]], Gemma]:
    model = model_of(job, backend)
    optimizer = build_optimizer(model, job.optim)
    train_step = make_train_step(model, optimizer, job.optim.clip_norm, job.optim.z_loss, backend)
    metrics = []
    for step, micro_batches in enumerate(batches(job, micro_batch, steps)):
        set_lr(optimizer, lr_at(job.optim, step, job.steps))
        metrics.append(scalars(train_step(micro_batches)))
    return metrics, model


def plain_loss(model: Gemma, batch: Batch, z_loss: float) -> torch.Tensor:
    """The mean over counted tokens, from whole logits."""
    logits = model(batch.tokens_BS, batch.segments_BS, batch.positions_BS).flatten(0, 1)
    weights = batch.weights_BS.flatten()
    each = F.cross_entropy(logits, batch.targets_BS.flatten(), reduction="none")
    each = each + z_loss * logits.logsumexp(-1) ** 2
    return (weights * each).sum() / weights.sum()


@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_updates_are_those_of_a_plain_model_and_torch_adamw(job: Job, backend: Backend, z_loss: float) -> None:
    job.optim.z_loss = z_loss
    metrics, ours = train(job, backend, micro_batch=3, steps=2)

    reference = model_of(job, None)
    matrices = [p for n, p in reference.named_parameters() if p.ndim == 2 and n != "embedding.weight"]
    rest = [p for n, p in reference.named_parameters() if p.ndim < 2 or n == "embedding.weight"]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=job.optim.peak_lr,
        betas=(0.9, 0.95),
        eps=job.optim.eps,
    )
    for measured, (batch,) in zip(metrics, batches(job, 12, 2), strict=True):
        loss = plain_loss(reference, batch, z_loss)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), job.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert norm > job.optim.clip_norm  # so that clipping has something to do
        assert measured["loss"] == pytest.approx(loss.item(), rel=EXACT)
        assert measured["grad_norm"] == pytest.approx(norm.item(), rel=EXACT)
        assert measured["tokens"] == batch.weights_BS.sum().item()
    expected = parameters(reference)
    for name, tensor in parameters(ours).items():
        assert (tensor - expected[name]).norm() <= EXACT * max(1.0, expected[name].norm().item()), name


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_is_one_big_batch(job: Job, backend: Backend, micro_batch: int) -> None:
    (one,), big = train(job, backend, micro_batch=12)
    (many,), small = train(job, backend, micro_batch=micro_batch)
    assert many == pytest.approx(one, rel=EXACT)
    expected = parameters(big)
    for name, tensor in parameters(small).items():
        assert (tensor - expected[name]).norm() <= EXACT * max(1.0, expected[name].norm().item()), name


def test_a_norm_below_the_limit_is_left_alone(job: Job, backend: Backend) -> None:
    job.optim.clip_norm = 1e6
    loose, unclipped = train(job, backend, micro_batch=12)
    job.optim.clip_norm = loose[0]["grad_norm"] * 1.001
    _, close = train(job, backend, micro_batch=12)
    for name, tensor in parameters(close).items():
        assert torch.equal(tensor, parameters(unclipped)[name]), name


def test_a_row_without_weight_changes_nothing(job: Job, backend: Backend) -> None:
    """Empty rows, as a held-out pass ends with, count neither in the loss nor in the gradient."""
    ((batch,),) = batches(job, 12, 1)
    weights = batch.weights_BS.clone()
    weights[5:] = 0
    half = dataclasses.replace(batch, weights_BS=weights)
    rows = ("tokens_BS", "targets_BS", "segments_BS", "positions_BS", "weights_BS")
    short = dataclasses.replace(half, **{name: getattr(half, name)[:5] for name in rows})
    seen = []
    for each in (half, short):
        model = model_of(job, backend)
        train_step = make_train_step(model, build_optimizer(model, job.optim), 1.0, 0.0, backend)
        seen.append(scalars(train_step([each])))
    assert seen[0] == pytest.approx(seen[1], rel=EXACT)


def test_a_step_whose_every_document_is_left_out_moves_nothing_to_nan(job: Job, backend: Backend) -> None:
    ((batch,),) = batches(job, 12, 1)
    model = model_of(job, backend)
    train_step = make_train_step(model, build_optimizer(model, job.optim), 1.0, 0.0, backend)
    nothing = dataclasses.replace(batch, weights_BS=torch.zeros_like(batch.weights_BS))
    assert scalars(train_step([nothing])) == {"loss": 0, "grad_norm": 0, "skipped": 0, "tokens": 0}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_gradients_are_gone_after_a_step(job: Job, backend: Backend) -> None:
    _, model = train(job, backend, micro_batch=6)
    assert all(parameter.grad is None for parameter in model.parameters())

"""Configuration -> the parts of a training run. The only file that knows both."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from conf import schema
from conf.exits import DataError
from data_pipeline.stream import TokenStream
from data_pipeline.tokenizer import Tokenizer
from trainer import checkpoint
from trainer.backend import Backend
from trainer.model import Gemma, build_config
from trainer.model.gemma import init_weights
from trainer.optim import build_optimizer
from trainer.run import Run
from trainer.run_directory import RunDirectory, writing


@dataclass(frozen=True)
class Parts:
    """What `fit` works with besides the run itself."""

    backend: Backend
    directory: RunDirectory
    stream: TokenStream
    held_out: TokenStream | None
    rows_per_step: int


def build(job: schema.Job, backend: Backend) -> tuple[Run, Parts]:
    """Check all that can be checked, claim the run directory, and make the run: new, or from its last checkpoint.

    Raises ConfigError or DataError, on every process that sees the fault, before any step is taken.
    """
    directory = RunDirectory(job)
    directory.check()
    stream = open_stream(job, job.data.manifest)
    held_out = open_stream(job, job.data.held_out) if job.data.held_out and job.evaluate.every else None
    tokenizer_path = Path(job.tokenizer.model or job.tokenizer.output)
    tokenizer = Tokenizer.load(tokenizer_path)
    for shards in (stream.shards, *([held_out.shards] if held_out else [])):
        shards.check_tokenizer(tokenizer)
    config = build_config(job.model, tokenizer.vocab_size)
    last = checkpoint.find(directory.checkpoints)

    attempt = torch.zeros((), device=backend.device)
    if backend.world.rank == 0:
        attempt += directory.claim()
        with writing(directory.path / "tokenizer.model"):
            shutil.copyfile(tokenizer_path, directory.path / "tokenizer.model")
    attempt = backend.total(attempt)  # every process waits here until the directory is claimed

    with torch.device("meta"):
        model = Gemma(config)
    backend.shard(model)
    run = Run(model, build_optimizer(model, job.optim), stream.cursor(0), attempt=int(attempt.item()))
    if last is None:
        torch.manual_seed(job.seed)  # torch seeds itself by chance, and a checkpoint keeps the state
        init_weights(model, job.seed)
    else:
        run.load(last)
    rows_per_step = job.tokens_per_step // job.data.sequence_length
    return run, Parts(backend, directory, stream, held_out, rows_per_step)


def open_stream(job: schema.Job, manifest: str) -> TokenStream:
    """The batches of a manifest in the order that this job defines."""
    stream = TokenStream(
        manifest,
        sequence_length=job.data.sequence_length,
        packing=job.data.packing,
        window_blocks=job.data.window_blocks,
        seed=job.seed,
        workers=job.data.workers,
    )
    if stream.rows_per_epoch == 0:
        raise DataError(f"{manifest} holds no documents: curate more text, or set data.manifest to other shards")
    return stream

"""The loss on text that is never trained on, while training."""

from __future__ import annotations

import torch
from torch import Tensor

from conf import schema
from data_pipeline.batch import Batch
from data_pipeline.stream import TokenStream
from trainer.backend import Backend
from trainer.model import Gemma
from trainer.step import loss_of


@torch.no_grad()
def held_out_loss(job: schema.Job, model: Gemma, stream: TokenStream, backend: Backend) -> float:
    """Nats per token over the first `evaluate.rows` rows of the held-out order.

    Which rows those are does not depend on the processes, which share them; every process gets the same number back.
    """
    world, read_at_once = backend.world, job.micro_batch * backend.feeders
    rows = stream.epoch(micro_batch=read_at_once, rank=world.rank, world=world.size, rows=job.evaluate.rows)

    def score(batch: Batch) -> Tensor:
        return torch.stack([loss_of(model, batch), batch.weights_BS.sum()])

    scored = backend.compile(score)
    sums = [scored(batch) for batch in backend.feed(rows)]
    backend.release(model)
    loss, tokens = backend.total(sum(sums[1:], sums[0])).tolist()
    return loss / tokens

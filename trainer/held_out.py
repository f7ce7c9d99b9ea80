"""The loss on text that is never trained on, while training."""

from __future__ import annotations

import torch

from conf import schema
from data_pipeline.stream import TokenStream
from trainer.backend import Backend
from trainer.model import Gemma
from trainer.step import loss_of


@torch.no_grad()
def held_out_loss(job: schema.Job, model: Gemma, stream: TokenStream, backend: Backend) -> float:
    """Nats per token over the first `evaluate.rows` rows of the held-out order.

    Which rows those are does not depend on the processes, which share them; every process gets the same number back.
    """
    sums = torch.zeros(2, device=backend.device)
    world = backend.world
    rows = stream.epoch(micro_batch=job.micro_batch, rank=world.rank, world=world.size, rows=job.evaluate.rows)
    for batch in backend.feed(rows):
        sums += torch.stack([loss_of(model, batch), batch.weights_BS.sum()])
    backend.release(model)
    loss, tokens = backend.total(sums).tolist()
    return loss / tokens

"""The training step of a job as a program, for chips that are not attached and without weights: what a plan needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor

from conf import schema
from conf.exits import ConfigError
from data_pipeline.batch import Batch, Cursor
from trainer.backend.xla.backend import Chips, Xla
from trainer.backend.xla.program import Program
from trainer.model import Gemma, GemmaConfig
from trainer.optim import build_optimizer
from trainer.step import make_train_step

_C = torch_xla._XLAC


@dataclass(frozen=True)
class Traced:
    """A program, and of which outputs which inputs are given up to them: what a step changes in place."""

    hlo: str
    donated: dict[int, int]


def trace(job: schema.Job, config: GemmaConfig, chips: Chips, micro_batches: int = 1) -> Traced:
    """The step of so many micro-batches. Raises ConfigError where the chips cannot share the model."""
    backend = Xla(job, chips)
    if problems := backend.problems(config):
        raise ConfigError("; ".join(problems))
    with torch.device("meta"):
        model = Gemma(config)
    backend.shard(model)
    optimizer = build_optimizer(model, job.optim, job.precision, backend.adamw)
    step = make_train_step(model, optimizer, job.optim.clip_norm, job.optim.z_loss, backend)
    batches = [_batch(job, backend) for _ in range(micro_batches)]
    before = [tensor.detach().clone() for tensor in backend.kept]
    _, after = Program(step, lambda: backend.kept).record(batches)
    context = _C.lowering.LoweringContext("Step")
    context.set_name_string("train_step")
    context.build(after)
    numbers = [context.tensor_parameter_id(tensor) for tensor in before]
    return Traced(_text(context.hlo()), {output: number for output, number in enumerate(numbers) if number >= 0})


def _batch(job: schema.Job, backend: Xla) -> Batch:
    """Rows of all feeders, without content."""
    rows = (job.micro_batch * backend.feeders * backend.world.size, job.data.sequence_length)
    counts = _nothing((1,), torch.int64)
    return Batch(
        tokens_BS=_nothing(rows, torch.int64),
        targets_BS=_nothing(rows, torch.int64),
        segments_BS=_nothing(rows, torch.int32),
        positions_BS=_nothing(rows, torch.int32),
        weights_BS=_nothing(rows, torch.float32),
        cu_seqlens_N=counts,
        longest=job.data.sequence_length,
        counts_K=counts,
        cursor=Cursor(0, "", "", "", ""),
    )


def _nothing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    placeholder: Tensor = xb.create_placeholder_tensor(shape, dtype)
    return placeholder


def _text(module: bytes) -> str:
    from jax._src.lib import xla_client  # reads the module; no device of JAX is touched

    options = xla_client._xla.HloPrintOptions()
    options.print_large_constants = True
    options.print_backend_config = True  # the kernels of splash attention
    text: str = xla_client.XlaComputation(module).get_hlo_module().to_string(options)
    return text

"""Five updates of a tiny Gemma of each generation with each optimizer on each mesh, for `test_mesh.py`.

    mesh_steps.py FOLDER MESH...

MESH is the sizes of replica, fsdp, context and tensor, as in 1x2x1x2; FOLDER/MESH.RANK gets what each update said.
Rows hold several documents, of which some cross the runs of positions that processes share, and padding.
"""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path

import torch
from torch.optim import Optimizer

from conf.schema import AXES, Job
from data_pipeline.batch import Batch, Cursor
from tests.trainer.forked import together
from tests.trainer.twins import config_of
from trainer.backend.native import Native
from trainer.model import Gemma, init_weights
from trainer.optim.optimizer import build_optimizer, set_lr
from trainer.step import TrainStep, make_train_step

ROWS, S, STEPS, WORDS = 4, 32, 5, 256
GENERATIONS = (1, 2, 3)  # key heads of `config_of`: 1, so that processes of the tensor axis share it, then 2 and 2


OPTIMIZERS = ("adamw", "muon")


def job_of(axes: list[int]) -> Job:
    job = Job()
    job.precision, job.micro_batch = "fp32", 1
    job.data.sequence_length, job.tokens_per_step = S, ROWS * S
    job.optim.eps = 1e-5  # with less, the sign of what is nothing but rounding decides first updates
    for axis, size in zip(AXES, axes, strict=True):
        setattr(job.mesh, axis, size)
    return job


def batch_of(step: int, rows: slice) -> Batch:
    """Some of the rows of a step, the same for every mesh."""
    draw = torch.Generator().manual_seed(step)
    tokens_BS = torch.randint(0, WORDS, (ROWS, S + 1), generator=draw)
    ends = ([11, 32], [5, 20, 29], [32], [1, 2, 17])  # of the documents of each row; what follows is padding
    segments_BS, positions_BS = (torch.zeros(ROWS, S, dtype=torch.int32) for _ in range(2))
    for row, stops in enumerate(ends):
        for number, (start, stop) in enumerate(zip([0, *stops], stops, strict=False), 1):
            segments_BS[row, start:stop] = number
            positions_BS[row, start:stop] = torch.arange(stop - start)
    arrays = (tokens_BS[:, :-1], tokens_BS[:, 1:], segments_BS, positions_BS, (segments_BS > 0).float())
    own = [array[rows] for array in arrays]
    return Batch(*own, torch.zeros(2, dtype=torch.int32), S, torch.tensor([len(own[0])]), Cursor(0, "", "", "", ""))


def start(generation: int, job: Job, backend: Native) -> tuple[Gemma, Optimizer, TrainStep]:
    """A new model, its optimizer and its update, as `trainer.build` and `fit` make them."""
    pattern = ("global",) if generation == 1 else ("local", "global")
    config = config_of(generation, num_layers=2, pattern=pattern)
    assert not backend.problems(config)
    with torch.device("meta"):
        model = Gemma(config)
    backend.shard(model)
    optimizer = build_optimizer(model, job.optim, job.precision)
    init_weights(model, seed=0)
    set_lr(optimizer, 1e-3)
    return model, optimizer, make_train_step(model, optimizer, job.optim.clip_norm, 0.0, backend)


def updates(generation: int, job: Job, backend: Native, steps: int = STEPS) -> list[dict[str, float]]:
    """What each update says of itself."""
    _, _, train_step = start(generation, job, backend)
    said = []
    for step in range(steps):
        own = slice(backend.world.rank, ROWS, backend.world.size)
        metrics = train_step(list(backend.feed([batch_of(step, own)])))
        said.append({name: value.item() for name, value in metrics.items()})
    return said


def process(output: Path, mesh: str, sizes: list[int]) -> None:
    """What one of the processes of a mesh does."""
    job = job_of(sizes)
    backend = Native("cpu", job)
    said = {}
    for job.optim.name in OPTIMIZERS:
        for generation in GENERATIONS:
            said[f"{job.optim.name} {generation}"] = updates(generation, job, backend)
    Path(f"{output / mesh}.{backend.processes.rank}").write_text(json.dumps(said))
    backend.close()


def main(output: Path, meshes: list[str]) -> None:
    """Each mesh in processes of its own."""
    for mesh in meshes:
        sizes = [int(size) for size in mesh.split("x")]
        together(math.prod(sizes), partial(process, output, mesh, sizes), mesh)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

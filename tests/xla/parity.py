"""Ten updates of tiny Gemmas on meshes of four chips, and of the same on native processes, for `test_parity.py`.

    python -m tests.xla.parity FOLDER

writes to FOLDER/PROCESSES what each update says on so many native processes, which load no torch_xla. Rows hold several
documents and end in padding, each as much as it likes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from conf.schema import Job
from data_pipeline.batch import Batch, Cursor
from tests.trainer.forked import together
from tests.trainer.twins import config_of
from trainer.backend import Backend
from trainer.build import named_weights
from trainer.model import Gemma, GemmaConfig, init_weights
from trainer.optim.optimizer import build_optimizer, set_lr
from trainer.step import make_train_step

ROWS, STEPS, WORLDS = 8, 10, (1, 2, 4)
Said = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A model, what a step is made of, and how four chips share it: replica x fsdp x tensor."""

    generation: int
    mesh: tuple[int, int, int]
    micro_batch: int = 2
    remat: str = "block"
    z_loss: float = 0.0
    positions: int = 32
    attention: str = "reference"
    steps: int = STEPS
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Micro-batches of a step on the chips."""
        return ROWS // (self.micro_batch * self.mesh[0] * self.mesh[1])

    def config(self) -> GemmaConfig:
        return config_of(self.generation, **self.model)

    def job(self) -> Job:
        """On four chips."""
        job = self.native_job(ROWS)
        job.micro_batch, job.remat, job.attention = self.micro_batch, self.remat, self.attention
        job.mesh.replica, job.mesh.fsdp, job.mesh.tensor = self.mesh
        return job

    def native_job(self, micro_batch: int) -> Job:
        """On processes that share nothing but parameters."""
        job = Job()
        job.precision, job.micro_batch, job.remat = "fp32", micro_batch, "none"
        job.data.sequence_length, job.tokens_per_step = self.positions, ROWS * self.positions
        job.optim.z_loss = self.z_loss
        job.optim.eps = 1e-4  # with less, the sign of what is nothing but rounding decides first updates
        return job


LOCAL, GLOBAL = "local", "global"
TWO = {"num_layers": 3, "pattern": (LOCAL, GLOBAL)}
UNEVEN = {"vocab_size": 257, "d_model": 50, "d_ff": 37, "num_heads": 3, "num_kv_heads": 1, "head_dim": 6}
HALVES = {"vocab_size": 258, "d_model": 51, "d_ff": 38, "num_heads": 2, "num_kv_heads": 2, "head_dim": 6}
CASES = {
    # Where nothing else is said, layers are 3 of a pattern of 1, and 5 of 2; key heads 1, 2, 2.
    "gemma1 on 1x4x1": Case(1, (1, 4, 1)),
    "gemma1 on 2x2x1, one layer": Case(1, (2, 2, 1), micro_batch=1, model={"num_layers": 1}),
    "gemma1 on 1x2x2": Case(1, (1, 2, 2), micro_batch=4, remat="none", z_loss=1e-2),
    "gemma1 on 1x1x4, 4 passes": Case(1, (1, 1, 4), micro_batch=2, remat="selective", z_loss=1e-2),
    "gemma1 on 4x1x1, 2 passes": Case(1, (4, 1, 1), micro_batch=1),
    "gemma2 on 1x4x1, 5 layers of 2, 2 passes": Case(2, (1, 4, 1), micro_batch=1),
    "gemma2 on 2x2x1, 5 layers of 2": Case(2, (2, 2, 1), remat="selective", z_loss=1e-2),
    "gemma2 on 1x2x2, 2 passes": Case(2, (1, 2, 2), remat="none", model={"num_layers": 3}),
    "gemma2 on 1x1x4": Case(2, (1, 1, 4), micro_batch=8, model={"num_kv_heads": 4, "num_layers": 2}),
    "gemma3 on 1x1x4, 2 key heads": Case(3, (1, 1, 4), micro_batch=8, model={"num_layers": 2}),
    "gemma2 on 4x1x1": Case(2, (4, 1, 1), remat="none", model={"num_layers": 2}),
    "gemma3 on 1x4x1, 7 layers of 6": Case(3, (1, 4, 1), model={"num_layers": 7}),
    "gemma3 on 2x2x1, 5 layers of 3, 2 passes": Case(
        3, (2, 2, 1), micro_batch=1, remat="selective", model={"num_layers": 5, "pattern": (LOCAL, LOCAL, GLOBAL)}
    ),
    "gemma3 on 1x2x2, 2 layers of 6": Case(3, (1, 2, 2), micro_batch=4, model={"num_layers": 2}),
    "gemma3 on 1x1x4, 2 passes": Case(
        3, (1, 1, 4), micro_batch=4, remat="selective", model={"num_layers": 2, "num_kv_heads": 1}
    ),
    "gemma3 on 4x1x1, one layer of 6": Case(3, (4, 1, 1), remat="none", model={"num_layers": 1}),
    # No dimension that a mesh cuts is a multiple of its chips.
    "gemma2 on 1x4x1, uneven": Case(2, (1, 4, 1), model=UNEVEN | {"num_layers": 3}),
    "gemma3 on 1x2x2, uneven, 2 passes": Case(3, (1, 2, 2), z_loss=1e-2, model=HALVES | TWO),
    # Of 5 rows on 4 chips the last has none, of 2 only half of them have one.
    "gemma1 on 1x4x1, chips without rows": Case(
        1, (1, 4, 1), remat="selective", model={"d_ff": 5, "head_dim": 2, "num_layers": 2}
    ),
    # The kernel of TPUs, as plain operations.
    "gemma2 on 1x2x2, splash": Case(
        2, (1, 2, 2), positions=128, attention="splash", remat="selective", steps=4,
        model={"num_layers": 3, "head_dim": 128, "query_pre_attention": 128, "window": 40},
    ),
}  # fmt: skip


def batch_of(step: int, rows: slice, S: int) -> Batch:
    """Some of the rows of a step, the same for every mesh. One is empty, one is full, some tokens do not count."""
    draw = torch.Generator().manual_seed(step)
    tokens_BS = torch.randint(0, 256, (ROWS, S + 1), generator=draw)
    segments_BS, positions_BS = (torch.zeros(ROWS, S, dtype=torch.int32) for _ in range(2))
    for row in range(ROWS):
        documents = int(torch.randint(1, 6, (), generator=draw))
        ends = [0, *torch.randint(1, S + 1, (documents,), generator=draw).sort().values.tolist()]
        if row == step % ROWS:
            ends = [0]
        if row == (step + 3) % ROWS:
            ends = [0, S]
        for number, (start, stop) in enumerate(pairwise(ends), 1):
            segments_BS[row, start:stop] = number
            positions_BS[row, start:stop] = torch.arange(stop - start)
    counted_BS = torch.rand(ROWS, S, generator=draw) < 0.9
    weights_BS = ((segments_BS > 0) & counted_BS).float()
    arrays = (tokens_BS[:, :-1], tokens_BS[:, 1:], segments_BS, positions_BS, weights_BS)
    own = [array[rows].contiguous() for array in arrays]
    nowhere = Cursor(0, "", "", "", "")
    return Batch(*own, torch.zeros(2, dtype=torch.int32), S, torch.tensor([len(own[0])]), nowhere)


def updates(case: Case, job: Job, backend: Backend) -> Said:
    """What each update says of itself."""
    config = case.config()
    assert not backend.problems(config)
    with torch.device("meta"):
        model = Gemma(config)
    backend.shard(model)
    optimizer = build_optimizer(model, job.optim, job.precision, backend.adamw)
    init_weights(model, 0, named_weights(model, backend))
    set_lr(optimizer, 1e-3)
    step = backend.compile(make_train_step(model, optimizer, job.optim.clip_norm, job.optim.z_loss, backend))
    world, at_once = backend.world, job.micro_batch * backend.feeders
    said = []
    for number in range(case.steps):
        parts = [slice(row, row + at_once) for row in range(world.rank * at_once, ROWS, world.size * at_once)]
        metrics = step(list(backend.feed([batch_of(number, rows, case.positions) for rows in parts])))
        said.append({name: value.tolist() for name, value in metrics.items()})
    return said


def process(output: Path, processes: int) -> None:
    """What one of so many native processes does."""
    from trainer.backend.native import Native

    jobs = {name: case.native_job(ROWS // processes) for name, case in CASES.items()}
    backend = Native("cpu", jobs[next(iter(jobs))])  # one for all, which differ in nothing that it asks
    said = {name: updates(case, jobs[name], backend) for name, case in CASES.items()}
    if backend.processes.rank == 0:
        (output / str(processes)).write_text(json.dumps(said))
    backend.close()


if __name__ == "__main__":
    for processes in WORLDS:
        together(processes, partial(process, Path(sys.argv[1]), processes), f"{processes} processes")

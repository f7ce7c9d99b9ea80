"""Two updates of a small Gemma, measured from inside, for `test_plan_measured.py`.

    plan_steps.py FOLDER CASE...

CASE is mesh,generation,precision,remat,micro-batches and other keys, as in 1x2x1x1,3,bf16,none,1,optim.name=muon.
FOLDER/CASE.json gets what the first process measured: the operations of the first update as torch counts them, but of
causal attention only the pairs that are seen, and of the second update the most bytes that tensors took at once and
every collective.

Memory is what torch's profiler sees of the allocator of tensors: of every tensor, also within operators, from before
the model is made. It sees one thread, so the buffers that Gloo makes for itself, and its threads free, are left out.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import yaml
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from conf.schema import AXES, Job, get
from data_pipeline.batch import Batch, Cursor
from tests.trainer.forked import together
from trainer.backend import positions
from trainer.backend.native import Native
from trainer.model import Gemma, GemmaConfig, init_weights, loss
from trainer.optim.average import Average
from trainer.optim.optimizer import build_optimizer, set_lr
from trainer.step import make_train_step

ROWS, S = 2, 128  # of a micro-batch
LEAST_ROWS, CHUNK = 64, 2**17  # of a chunk of the loss: 128 tokens, so that there are several
PART = {"cpu": 2**15}  # a quarter of the embedding


def config_of(generation: int) -> GemmaConfig:
    """Small enough for a second, large enough that what is not counted (scales of norms, single numbers) is little."""
    pattern = ("global",) if generation == 1 else ("local", "global")
    return GemmaConfig(
        generation=generation, vocab_size=1024, num_layers=3, d_model=128, d_ff=384, num_heads=4,
        num_kv_heads=1 if generation == 1 else 2, head_dim=32, pattern=pattern, window=32, query_pre_attention=32,
        max_positions=8192, attention_soft_cap=50.0 if generation == 2 else None,
        final_soft_cap=30.0 if generation == 2 else None, qk_norm=generation == 3, post_norms=generation > 1,
    )  # fmt: skip


def job_of(case: str) -> tuple[Job, int]:
    """The job of a case, and its generation."""
    mesh, generation, precision, remat, micro_batches, *others = case.split(",")
    job = Job()
    job.precision, job.remat, job.micro_batch, job.data.sequence_length = precision, remat, ROWS, S
    for axis, size in zip(AXES, mesh.split("x"), strict=True):
        setattr(job.mesh, axis, int(size))
    job.tokens_per_step = int(micro_batches) * ROWS * S * job.mesh.replica * job.mesh.fsdp
    for path, value in (other.split("=") for other in others):
        *parents, name = path.split(".")
        setattr(get(job, ".".join(parents)) if parents else job, name, yaml.safe_load(value))
    return job, int(generation)


def batch() -> Batch:
    """Rows of one document."""
    tokens_BS = torch.randint(0, 1024, (ROWS, S + 1))
    segments_BS = torch.ones(ROWS, S, dtype=torch.int32)
    positions_BS = torch.arange(S, dtype=torch.int32).expand(ROWS, S).contiguous()
    arrays = (tokens_BS[:, :-1], tokens_BS[:, 1:], segments_BS, positions_BS, segments_BS.float())
    return Batch(*arrays, torch.zeros(2, dtype=torch.int32), S, torch.tensor([ROWS]), Cursor(0, "", "", "", ""))


Shape = Sequence[int]


def forward_flop(q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """Of the processor's attention under a mask."""
    return sdpa_flop_count(q, k, v)


def backward_flop(grad: Shape, q: Shape, k: Shape, v: Shape, *_: Any, **__: Any) -> int:
    """Of its backward pass."""
    return sdpa_backward_flop_count(grad, q, k, v)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward_flop,
}


class Collectives:
    """Stands between training and torch.distributed, and writes down what passes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []  # kind, processes of the group, bytes of the whole

    def watch(self) -> None:
        for name in ("all_gather_single", "reduce_scatter_single", "all_to_all_single", "all_reduce"):
            setattr(dist, name, self._watched(name.removesuffix("_single").replace("_", "-"), getattr(dist, name)))
        reduce = functional.all_reduce  # what DTensor sums gradients with

        def all_reduce(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
            mesh, axis = options["group"]
            self.seen.append(("all-reduce", mesh.size(axis), tensor.numel() * tensor.element_size()))
            return reduce(tensor, **options)

        functional.all_reduce = all_reduce
        positions._ALL_GATHER, positions._REDUCE_SCATTER = dist.all_gather_single, dist.reduce_scatter_single

    def _watched(self, kind: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [x for x in (*arguments, *options.values()) if isinstance(x, torch.Tensor)]
            held = [uses(tensor) for tensor in tensors]
            done = collective(*arguments, **options)
            whole = max(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.seen.append((kind, dist.get_world_size(options.get("group")), whole))
            # A thread of Gloo that lets go of a tensor last frees it where the profiler does not look.
            deadline = time.monotonic() + 10
            while any(uses(tensor) > count for tensor, count in zip(tensors, held, strict=True)):
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            return done

        return call


def uses(tensor: torch.Tensor) -> int:
    """How many tensors hold its memory, and how many threads the tensor."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) + tensor._use_count()


def measure(case: str, trace: Path) -> dict[str, Any]:
    """What this process measures of a case."""
    job, generation = job_of(case)
    loss.LEAST_ROWS, loss.CHUNK, loss.PART = LEAST_ROWS, CHUNK, PART
    backend = Native("cpu", job)
    config = config_of(generation)
    assert not backend.problems(config)
    micro_batches = job.tokens_per_step // (ROWS * S * backend.world.size)
    collectives = Collectives()
    collectives.watch()
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.device("meta"):
            model = Gemma(config)
        backend.shard(model)
        optimizer = build_optimizer(model, job.optim, job.precision)
        average = None if job.optim.ema is None else Average(model, job.optim.ema)
        init_weights(model, seed=0)
        set_lr(optimizer, 1e-3)
        train_step = make_train_step(model, optimizer, job.optim.clip_norm, 0.0, backend)
        with counter:
            train_step(list(backend.feed([batch() for _ in range(micro_batches)])))
        collectives.seen.clear()
        with record_function("measured"):
            metrics = train_step(list(backend.feed([batch() for _ in range(micro_batches)])))
            if average is not None:
                average.update(model, metrics["skipped"], average.share(2))
    backend.close()
    profiler.export_chrome_trace(str(trace))
    return {
        "flops": counter.get_total_flops(),
        "peak": most_bytes(json.loads(trace.read_text())["traceEvents"]),
        "collectives": collectives.seen,
    }


def most_bytes(events: list[dict[str, Any]]) -> int:
    """The most that was allocated at once during the span `measured`."""
    spans = [event for event in events if event.get("ph") == "X"]
    (measured,) = [span for span in spans if span["name"] == "measured"]
    gloo = sorted((span["ts"], span["ts"] + span["dur"]) for span in spans if span["name"].startswith("c10d::"))
    starts = [start for start, _ in gloo]
    live: dict[int, int] = {}
    total = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        at, size, address = event["ts"], event["args"]["Bytes"], event["args"]["Addr"]
        before = bisect.bisect_right(starts, at) - 1
        if size > 0 and not (before >= 0 and at <= gloo[before][1]):
            total += size - live.pop(address, 0)  # a thread freed what was there
            live[address] = size
        elif size < 0:
            total -= live.pop(address, 0)
        if measured["ts"] <= at <= measured["ts"] + measured["dur"]:
            most = max(most, total)
    return most


def process(folder: Path, case: str) -> None:
    """What one of the processes of a case does."""
    rank = int(os.environ["RANK"])
    said = measure(case, folder / f"trace-{rank}.json")
    if rank == 0:
        (folder / f"{case}.json").write_text(json.dumps(said))


def main(folder: Path, cases: list[str]) -> None:
    """Each case in processes of its own."""
    for case in cases:
        together(math.prod(int(size) for size in case.split(",")[0].split("x")), partial(process, folder, case), case)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

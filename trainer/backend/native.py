"""Plain PyTorch on CPU and CUDA: FSDP2 over Gloo or NCCL, one process per device, one path for one process or many."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from conf import schema
from conf.check import check_mesh_size, check_rows, integrity_problems
from conf.exits import ConfigError
from conf.hardware import peak_bf16_flops
from data_pipeline.batch import Batch
from trainer.backend import tensor_parallel
from trainer.backend.base import GROUP_SLACK, Compiled, World
from trainer.backend.context_parallel import SharedRows
from trainer.backend.remat import recomputing
from trainer.model import Gemma, GemmaConfig
from trainer.model.gemma import Block, bare_name
from trainer.model.kernels import KERNELS
from trainer.model.loss import fusible_chunk_loss, token_loss
from trainer.optim.optimizer import Groups, fused_adamw
from trainer.sharded import Parted

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Native:
    """FSDP2, and tensor and context parallelism, on a mesh of `schema.AXES`; see `Backend` for the members.

    Outside attention and feed-forward, processes that share the positions of rows (context, tensor) are to the
    parameters what those with rows of their own are: all shard them, and their gradients are summed.
    """

    def __init__(self, device_type: str, job: schema.Job) -> None:
        """Join the process group that the environment describes (RANK, WORLD_SIZE, ...), or make one of this process.

        Raises ConfigError where the mesh or the batch does not fit the processes.
        """
        self._job = job
        if device_type == "cuda":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        self.processes = World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
        size = self.processes.size
        problems = check_mesh_size(job, size, "the number of processes") or check_rows(job, size)
        if problems:  # before joining, so that a refusal leaves no group behind
            raise ConfigError("\n".join(problems))
        backend = "gloo"
        if device_type == "cuda":
            backend = "cpu:gloo,cuda:nccl" if job.optim.offload else "nccl"
        timeout = timedelta(seconds=job.hang.start_seconds + GROUP_SLACK)
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        self.store = dist.distributed_c10d._get_default_store()
        axes = schema.axes(job, size)
        self._mesh = init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        self._context, self._tensor = self._mesh["context"], self._mesh["tensor"]
        self._sharing = axes["context"] * axes["tensor"]
        self.devices, self.feeders, self.compiles = size, 1, job.compile
        self.world = World(self.processes.rank // self._sharing, size // self._sharing)

    def _sharding(self, *axes: str) -> DeviceMesh:
        """The mesh on which FSDP works: these axes as one, and replicas of that where there are several."""
        several = tuple(axis for axis in axes if self._mesh[axis].size() > 1) or axes[:1]
        joined = self._mesh[several]._flatten("_".join(several)) if len(several) > 1 else self._mesh[several]
        assert joined.mesh_dim_names is not None
        return self._mesh["replica", joined.mesh_dim_names[0]] if self._mesh["replica"].size() > 1 else joined

    def problems(self, config: GemmaConfig) -> list[str]:
        found = tensor_parallel.problems(config, self._tensor.size()) + integrity_problems(self._job, self.device.type)
        if self.device.type == "cpu" and self._job.attention == "flex":
            found.append("attention=flex has no gradients on a CPU: use attention=auto")
        if self._job.attention == "splash":
            found.append(f"attention=splash is a kernel for TPU, and this is {self.device.type}: use attention=auto")
        return found

    def shard(self, model: Gemma) -> None:
        job = self._job
        if self._tensor.size() > 1:
            for block in model.blocks:
                assert isinstance(block, Block)
                tensor_parallel.share_block(block, model.config, self._tensor)
        if self._context.size() > 1:
            model.rows = SharedRows(self._context)
        model.kernel = KERNELS[schema.attention_kernel(job, self.device.type, self._context.size())]
        if job.compile:
            model.loss = functools.partial(token_loss, chunk=torch.compile(fusible_chunk_loss))
        policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[job.precision],
            reduce_dtype=DTYPES[job.mesh.reduce_dtype],
            cast_forward_inputs=False,  # weights of the loss stay fp32; everything else follows the parameters
        )
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if job.optim.offload else OffloadPolicy()
        shard = functools.partial(fully_shard, mp_policy=policy, offload_policy=offload)
        # The processes of the tensor axis hold different parts of a block, and the same of what lies outside.
        of_block, outside = self._sharding("fsdp", "context"), self._sharding("fsdp", "context", "tensor")
        for index, block in enumerate(model.blocks):
            if job.compile:
                block.compile()
            model.blocks[index] = block = recomputing(block, job.remat, job.compile)
            shard(block, mesh=of_block)
        shard(model, mesh=outside)
        for module in model.modules():
            if isinstance(module, FSDPModule) and self.processes.size > 1:  # else FSDP would divide each by 1
                # The loss is divided by the weight of the global batch before backward, so gradients are summed.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # Gloo has no PREMUL_SUM
        model.to_empty(device="cpu" if job.optim.offload else self.device)
        if self.device.type == "cpu":
            _keep_freed_memory(model)

    def zeros_like(self, parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter, requires_grad=False)

    def adamw(self, groups: Groups, optim: schema.Optim) -> torch.optim.Optimizer:
        return fused_adamw(groups, optim)

    def named(self, name: str, tensor: Tensor) -> Mapping[str, Tensor | Parted]:
        return {bare_name(name): tensor}

    def compile(self, function: Compiled) -> Compiled:
        return function

    def accumulate(self, loss_of: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Tensor:
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            share = loss_of(batch)
            share.backward()
            loss += share.detach()
        return loss

    def feed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        narrowed = map(self._own_positions, batches)
        return self._copied_ahead(narrowed) if self.device.type == "cuda" else narrowed

    def _own_positions(self, batch: Batch) -> Batch:
        """The part of a batch that this process computes; `cu_seqlens_N` and `longest` stay those of whole rows.

        Between blocks a process holds its share of positions among those of context and tensor axis; within attention
        the processes of the tensor axis hold the same ones, all that their place on the context axis gives them.
        """
        if self._sharing == 1:
            return batch
        place, positions = self.processes.rank % self._sharing, batch.tokens_BS.shape[1]
        own = _part(positions, place, self._sharing)
        attended = _part(positions, place // self._tensor.size(), self._context.size())
        return dataclasses.replace(
            batch,
            tokens_BS=batch.tokens_BS[:, own],
            targets_BS=batch.targets_BS[:, own],
            weights_BS=batch.weights_BS[:, own],
            segments_BS=batch.segments_BS[:, attended],
            positions_BS=batch.positions_BS[:, attended],
            counts_K=batch.counts_K * (place == 0),  # counted once for the processes that share its rows
        )

    def _copied_ahead(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches on the GPU, each copied from page-locked memory while the one before it is computed with."""
        copying, ahead = torch.cuda.Stream(self.device), None
        for batch in itertools.chain(batches, [None]):
            following = None
            if batch is not None:
                with torch.cuda.stream(copying):
                    following = batch.pinned().to(self.device), copying.record_event()
            if ahead is not None:
                copied, done = ahead
                computing = torch.cuda.current_stream(self.device)
                computing.wait_event(done)
                for tensor in copied.tensors():
                    tensor.record_stream(computing)  # its memory was taken on the other stream
                yield copied
            ahead = following

    def release(self, model: Gemma) -> None:
        # The root keeps its parameters whole after its forward pass, since backward would need them at once.
        assert isinstance(model, FSDPModule)
        model.reshard()

    def total(self, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    def agree(self, values: Sequence[float]) -> list[float]:
        sums: list[float] = self.total(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return sums

    def barrier(self) -> None:
        dist.barrier()

    def memory_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # Not ru_maxrss: that starts from what the process that forked this one held.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def peak_flops(self) -> float | None:
        if self.device.type != "cuda" or self._job.precision != "bf16":
            return None
        return peak_bf16_flops(torch.cuda.get_device_name(self.device))

    def close(self) -> None:
        dist.destroy_process_group()


def _keep_freed_memory(model: Gemma) -> None:
    """Let glibc reuse large blocks that were freed, from the model's second pass on.

    It would give each back to the system and fault a new one in page by page, which took 8 % of a training step. Until
    then each lies by itself: what compiling leaves for good would lie among them, and keep holes from closing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # glibc only
        return
    mallopt(_M_MMAP_THRESHOLD, 2**18)
    passes = itertools.count()

    def before(*_: Any) -> None:
        if next(passes) == 1:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            handle.remove()

    handle = model.register_forward_pre_hook(before)


def _part(positions: int, number: int, parts: int) -> slice:
    """One of so many equal runs of positions."""
    return slice(number * positions // parts, (number + 1) * positions // parts)

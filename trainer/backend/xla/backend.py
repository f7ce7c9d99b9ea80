"""The xla backend: a `Backend` of `trainer.backend.base` on the chips that torch_xla finds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch_xla
import torch_xla.core.xla_builder as xb
import torch_xla.runtime as xr
from torch import Tensor
from torch_xla._internal import tpu

from conf import schema
from conf.check import check_mesh_size, check_rows, integrity_problems
from conf.exits import ConfigError
from conf.hardware import TPU_TYPES, tpu_chips
from data_pipeline.batch import Batch
from trainer.backend import splash
from trainer.backend.base import GROUP_SLACK, Compiled, World
from trainer.backend.xla.adamw import AdamW
from trainer.backend.xla.attention import run_program, splash_kernel
from trainer.backend.xla.feeders import ROWS, Feeders
from trainer.backend.xla.program import Program
from trainer.backend.xla.region import Mesh, chip_number
from trainer.backend.xla.scan import scan
from trainer.backend.xla.sharding import Placement, Spec
from trainer.backend.xla.spread import spread
from trainer.backend.xla.state import Stored
from trainer.backend.xla.weights import Weights
from trainer.model import Gemma, GemmaConfig
from trainer.model.config import tensor_problems
from trainer.model.kernels import reference
from trainer.optim.optimizer import Groups
from trainer.sharded import Parted

PORT = 29400  # of the first host, where processes meet; torchrun's
AXES = ("replica", "fsdp", "tensor")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_C = torch_xla._XLAC


@dataclass(frozen=True)
class Chips:
    """The chips that a program is for.

    count      of all hosts
    order      their numbers in the order of their places on the torus; None: as they come
    torus      sizes of its dimensions, outermost first; empty where nothing is known of it
    tpu        whether they are TPUs, and not virtual ones of this processor
    described  whether they are not attached: tensors then have no memory, and nothing runs
    """

    count: int
    order: tuple[int, ...] | None = None
    torus: tuple[int, ...] = ()
    tpu: bool = True
    described: bool = False


class Xla:
    """Chips on a mesh of `AXES`; see `Backend` for the members.

    A process drives every chip of its host, and to it a tensor is whole, however the mesh cuts it.
    """

    def __init__(self, job: schema.Job, chips: Chips | None = None) -> None:
        """Find the chips, unless they are given, and join the processes of other hosts.

        Raises ConfigError where the mesh or the batch does not fit the chips.
        """
        os.environ.setdefault("PJRT_DEVICE", "TPU" if tpu_chips() else "CPU")
        on_chips = os.environ["PJRT_DEVICE"] == "TPU" and chips is None
        start_runtime(job.backend.cache if on_chips else None)
        self._job = job
        self.chips = attached() if chips is None else chips
        self.devices = self.chips.count
        problems = check_mesh_size(job, self.devices, "the number of chips") or check_rows(job, self.devices)
        if problems:
            raise ConfigError("\n".join(problems))
        axes = schema.axes(job, self.devices)
        if axes["context"] != 1:
            raise ConfigError(f"mesh.context={axes['context']} does not run on XLA: use mesh.tensor for long rows")
        self.device = torch_xla.device()
        self.processes = World(0, 1) if self.chips.described else World(xr.process_index(), xr.process_count())
        self.store: dist.Store = dist.HashStore()
        if self.processes.size > 1:
            dist.init_process_group(
                "gloo",
                init_method=meeting_point(),
                rank=self.processes.rank,
                world_size=self.processes.size,
                timeout=timedelta(seconds=job.hang.start_seconds + GROUP_SLACK),
            )
            self.store = dist.distributed_c10d._get_default_store()
        self.mesh = Mesh({axis: axes[axis] for axis in AXES}, self.chips.torus, self.chips.order)
        self._feeders = Feeders(self.mesh, self._own_chips(), self.processes)
        self.world, self.feeders, self.compiles = self._feeders.world, len(self._feeders.here), True
        self._placed: dict[str, Placement] = {}
        self.kept: list[Tensor] = []  # parameters and what lies beside them: what a step changes
        self._of: dict[int, str] = {}  # by the identity of a parameter, its name

    def _own_chips(self) -> list[int]:
        """The numbers of those that this process drives."""
        if self.chips.described:
            return list(range(self.devices))
        return [chip_number(device) for device in _C._xla_get_runtime_devices()]

    def problems(self, config: GemmaConfig) -> list[str]:
        job, tensor = self._job, self.mesh.axes["tensor"]
        found = tensor_problems(config, tensor) + integrity_problems(job, "xla")
        if config.vocab_size % tensor:
            found.append(f"the vocabulary of {config.vocab_size} words is not a multiple of mesh.tensor={tensor}")
        if job.optim.name != "adamw":
            found.append(f"optim.name={job.optim.name} does not run on XLA: use optim.name=adamw")
        if self.kernel() == "splash":
            heads = config.num_heads // tensor
            found += splash.problems(
                job.data.sequence_length,
                heads,
                max(1, config.num_kv_heads // tensor),
                config.head_dim,
                DTYPES[job.precision],
            )
        return found

    def kernel(self) -> str:
        """What computes attention."""
        if self._job.attention in ("splash", "reference"):
            return self._job.attention
        return "splash" if self.chips.tpu and self._job.data.sequence_length % splash.LANES == 0 else "reference"

    def shard(self, model: Gemma) -> None:
        job = self._job
        splash.use(run_program, interpret=not self.chips.tpu)
        weights = Weights(self.mesh, DTYPES[job.precision], DTYPES[job.mesh.reduce_dtype])
        kernel = splash_kernel if self.kernel() == "splash" else reference
        self._placed, self.kept, self._of = spread(model, weights, job.remat, kernel), [], {}
        for name, placement in self._placed.items():
            owner, _, last = name.rpartition(".")
            parameter = torch.nn.Parameter(self._zeros(placement.stored, torch.float32, placement.spec))
            setattr(model.get_submodule(owner), last, parameter)
            self._of[id(parameter)] = name
        self.kept += model.parameters()

    def _zeros(self, shape: Sequence[int], dtype: torch.dtype, spec: Spec) -> Tensor:
        """On the chips, each its own part only."""
        if self.chips.described:
            return xb.create_placeholder_tensor(tuple(shape), dtype)
        zeros = self.mesh.mark(torch.zeros(tuple(shape), dtype=dtype, device=self.device), spec)
        _C._xla_sync_multi([zeros], [], True, True)
        return zeros

    def zeros_like(self, parameter: Tensor) -> Tensor:
        name = self._of.get(id(parameter))
        spec: Spec = self._placed[name].spec if name else (None,) * parameter.ndim
        zeros = self._zeros(parameter.shape, parameter.dtype, spec)
        self.kept.append(zeros)
        return zeros

    def adamw(self, groups: Groups, optim: schema.Optim) -> torch.optim.Optimizer:
        return AdamW(groups, optim, self.zeros_like)

    def named(self, name: str, tensor: Tensor) -> Mapping[str, Tensor | Parted]:
        return Stored(tensor, self._placed[name], self.mesh).named(name)

    def compile(self, function: Compiled) -> Compiled:
        return Program(function, lambda: self.kept)  # type: ignore[return-value]

    def accumulate(self, loss_of: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> Tensor:
        parameters = [p for p in self.kept if isinstance(p, torch.nn.Parameter)]
        if len(batches) == 1:
            loss = loss_of(batches[0])
            loss.backward()
            return loss.detach()
        specs = [self._placed[self._of[id(p)]].spec for p in parameters]
        names = ("tokens_BS", "targets_BS", "segments_BS", "positions_BS", "weights_BS")

        def one_batch(
            carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            rows = [self.mesh.mark(x, ROWS) for x in slices[0]]
            for parameter in parameters:
                parameter.grad = None
            with torch.enable_grad():
                loss = loss_of(dataclasses.replace(batches[0], **_fields(zip(names, rows, strict=True))))
                loss.backward()
            sums = [before + gradient for before, gradient in zip(carry[1:], map(_gradient, parameters), strict=True)]
            return [carry[0] + loss.detach(), *map(self.mesh.mark, sums, specs)], [[]]

        zeros = [self.mesh.mark(torch.zeros_like(p), spec) for p, spec in zip(parameters, specs, strict=True)]
        stacked = [
            self.mesh.mark(torch.stack([getattr(batch, name) for batch in batches]), (None, *ROWS)) for name in names
        ]
        begin = [torch.zeros((), device=self.device), *zeros]
        (loss, *sums), _ = scan(one_batch, begin, stacked, [], 1, len(batches), reads=parameters)
        for parameter, gradient in zip(parameters, sums, strict=True):
            parameter.grad = gradient
        return loss

    def feed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
            # Counts are added up over hosts: each is a row of its own of one tensor.
            tensors["counts_K"] = torch.stack(
                [batch.counts_K, *[torch.zeros_like(batch.counts_K)] * (self.feeders - 1)]
            )
            del tensors["cu_seqlens_N"]  # for kernels of variable length only
            on_chips = {name: self._feeders.to_chips(tensor) for name, tensor in tensors.items()}
            on_chips["counts_K"] = on_chips["counts_K"].sum(0)
            yield dataclasses.replace(batch, **_fields(on_chips.items()))

    def release(self, model: Gemma) -> None:
        pass

    def total(self, x: Tensor) -> Tensor:
        return x  # it is that of all chips

    def agree(self, values: Sequence[float]) -> list[float]:
        sums = torch.tensor(values, dtype=torch.float64)
        if self.processes.size > 1:
            dist.all_reduce(sums)
        return [float(value) for value in sums]

    def barrier(self) -> None:
        if self.processes.size > 1:
            dist.barrier()

    def memory_bytes(self) -> int | None:
        if self.chips.tpu:
            return None  # torch_xla 2.9 tells none of devices that one program spans; `tpu-info` shows it
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def peak_flops(self) -> float | None:
        if not self.chips.tpu or self._job.precision != "bf16":
            return None
        chip = TPU_TYPES.get(tpu.get_tpu_type())
        return None if chip is None else chip.bf16_flops

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _fields(named: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    return dict(named)


def start_runtime(cache: str | None) -> None:
    """Say to torch_xla, before anything asks for a device, how programs are to be made, and where they are kept."""
    if cache is not None and "XLA_PERSISTENT_CACHE_PATH" not in os.environ:
        xr.initialize_cache(str(Path(cache).expanduser()))
    xr.use_spmd()
    # Numbers become part of a program: as inputs they would lie on the device, which no manual region can hold.
    _C._set_xla_handle_special_scalars(True)
    _C._set_xla_all_numbers_special_scalars(True)
    xr.global_runtime_device_count()  # autograd must know the devices before the first backward pass of any device


def meeting_point() -> str:
    """Where the processes of all hosts find each other, as torch.distributed wants it: at the host of the first.

    MASTER_ADDR says where that is, else MEGASCALE_COORDINATOR_ADDRESS, which every host of several slices has, else the
    TPU's own metadata.
    """
    coordinator = os.environ.get("MEGASCALE_COORDINATOR_ADDRESS", "").rpartition(":")
    host = os.environ.get("MASTER_ADDR") or coordinator[0] or coordinator[2] or tpu.discover_master_worker_ip()
    return f"tcp://{host}:{os.environ.get('MASTER_PORT', PORT)}"


def attached() -> Chips:
    """Those that torch_xla finds."""
    count, attributes = xr.global_runtime_device_count(), xr.global_runtime_device_attributes()
    if xr.device_type() != "TPU":
        return Chips(count, tpu=False)
    places = sorted((one.get("slice_index", 0), *one["coords"], chip_number(str(one["name"]))) for one in attributes)
    sizes = (int(n) + 1 for n in np.array(places)[:, :-1].max(0))
    return Chips(count, tuple(chip for *_, chip in places), tuple(n for n in sizes if n > 1))

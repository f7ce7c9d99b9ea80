"""The step of a job as the program that a TPU slice would run, traced in a process of its own.

torch_xla takes hold of a process: it chooses a device once, and for good. What traces here is told to use the processor
whatever the machine has, so a plan never touches a TPU that trains meanwhile, and is gone when the plan is made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from conf import schema
from conf.exits import ConfigError
from conf.hardware import Hardware
from trainer.model.config import GemmaConfig
from trainer.plan.tpu import results
from trainer.plan.tpu.compiler import (
    CACHE,
    FLAGS,
    REMEDY,
    Compiled,
    CompilerFailed,
    Program,
    compile_program,
    end_with_parent,
    found_versions,
    stored_as_compiled,
    version,
)
from trainer.plan.tpu.topology import Topology, topology_of

if TYPE_CHECKING:
    from trainer.backend.xla.backend import Chips

TRACER = {"torch": "2.9.1", "torch_xla": "2.9.0"}  # which the packages of `tpu.PAIR` go with
ROOT = Path(__file__).parents[3]
PLACE = {  # where torch_xla and jax are told to be
    "PJRT_DEVICE": "CPU",
    "CPU_NUM_DEVICES": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
}


@dataclass(frozen=True)
class Step:
    """All that the program of a step follows from. Of the job only what the step reads may differ from the defaults."""

    job: schema.Job
    config: GemmaConfig
    hardware: Hardware
    slices: int
    micro_batches: int

    def asked(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "job": {name: schema.get(self.job, name) for name in _SINGLE}
            | {name: dataclasses.asdict(getattr(self.job, name)) for name in _SECTIONS},
            "config": dataclasses.asdict(self.config),
            "topology": dataclasses.asdict(topology_of(self.hardware, self.slices)),
            "micro_batches": self.micro_batches,
        }


_SINGLE = ("tokens_per_step", "micro_batch", "precision", "remat", "attention")
_SECTIONS = {"data": schema.Data, "optim": schema.Optim, "mesh": schema.Mesh, "backend": schema.Backend}


def step_of(job: schema.Job, config: GemmaConfig, axes: dict[str, int], hardware: Hardware, micro_batches: int) -> Step:
    """That of a job on a mesh of whole slices. Raises ConfigError where it is none."""
    chips = 1
    for size in axes.values():
        chips *= size
    if chips % hardware.joined:
        raise ConfigError(
            f"a mesh of {chips} chips is none of whole slices: hardware={hardware.name} has {hardware.joined}"
        )
    feeders = axes["replica"] * axes["fsdp"]
    taken = {name: getattr(job, name) for name in _SINGLE}
    taken["tokens_per_step"] = job.micro_batch * job.data.sequence_length * feeders * micro_batches
    return Step(
        job=schema.Job(
            **taken,
            data=schema.Data(sequence_length=job.data.sequence_length),
            optim=dataclasses.replace(job.optim, ema=None),  # the average moves in a program of its own
            mesh=schema.Mesh(**axes, reduce_dtype=job.mesh.reduce_dtype),
            backend=schema.Backend("xla"),
        ),
        config=config,
        hardware=hardware,
        slices=chips // hardware.joined,
        micro_batches=micro_batches,
    )


def missing() -> bool:
    """Whether this environment is not made to compile for TPUs.

    Raises ConfigError where it is, and holds other versions than those that go together.
    """
    if importlib.util.find_spec("torch_xla") is None:
        return True
    _versions()
    return False


def _versions() -> dict[str, str]:
    versions = found_versions()
    for name, wanted in TRACER.items():
        found = (version(name) or "none").partition("+")[0]
        if found != wanted:
            raise ConfigError(
                f"compiling for a TPU ahead of time needs {name} {wanted}, and {sys.prefix} has {found}. {REMEDY}"
            )
    return versions | TRACER


class Compiler:
    """Traces and compiles steps, one after the other, in a context; the process that traces starts with the first."""

    def __init__(self, folder: Path | None = CACHE) -> None:
        """`folder` keeps results; None keeps none."""
        self._kept_in = None if folder is None else folder.expanduser()
        self._child: subprocess.Popen[str] | None = None
        self._work = tempfile.TemporaryDirectory(prefix="gemcutter-step-")

    def __enter__(self) -> Compiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        self._work.cleanup()

    def kept(self, step: Step) -> Compiled | None:
        """What is known of a step without tracing it; None where that is nothing."""
        stored = None if self._kept_in is None else results.load(self._kept_in, _name(step))
        return None if stored is None else stored_as_compiled(stored)

    def compile(self, step: Step) -> Compiled:
        """What the TPU compiler makes of a step.

        Raises ConfigError where the step cannot run on such chips, CompilerFailed where the compiler fails.
        """
        if (known := self.kept(step)) is not None:
            return known
        compiled = compile_program(self._traced(step), step.hardware, step.slices, cache=self._kept_in)
        if self._kept_in is not None:
            results.save(self._kept_in, _name(step), dataclasses.asdict(compiled))
        return compiled

    def _traced(self, step: Step) -> Program:
        folder = Path(self._work.name)
        answer = folder / "program.json"
        answer.unlink(missing_ok=True)
        if self._child is None:
            with (folder / "stderr").open("w") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "trainer.plan.tpu.step", str(answer)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    cwd=folder, env=_environment(),
                )  # fmt: skip
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(step.asked()) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and what it said is read below
        if not self._child.stdout.readline():
            said = (folder / "stderr").read_text(errors="replace")[-3000:].strip()
            self._child.wait()
            self._child = None  # the next step gets another one
            raise CompilerFailed(f"the step could not be traced. The end of what was said:\n{said}")
        traced = json.loads(answer.read_text())
        if traced["problem"]:
            raise ConfigError(traced["problem"])
        return Program(traced["hlo"], {int(output): number for output, number in traced["donated"].items()})


def _name(step: Step) -> str:
    """Under which a step's result is kept: it follows from these, as no other code has a part in it."""
    flags = {name: os.environ.get(name, "") for name in FLAGS}
    return results.key(_sources(), {"step": step.asked(), "versions": _versions(), "flags": flags})


@cache
def _sources() -> str:
    """Digest of the code of the rooms: a step that was traced by other code is traced again."""
    digest = hashlib.sha256()
    for room in ("conf", "data_pipeline", "trainer"):
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in FLAGS}  # those are the compiler's
    return kept | PLACE | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


def _main(answer: Path) -> None:
    """The process that traces: a line asks for a step, and a line says that its program is written."""
    end_with_parent()
    says = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    for line in sys.stdin:
        answer.write_text(json.dumps(_trace(json.loads(line))))
        print("done", file=says, flush=True)


def _trace(asked: dict[str, Any]) -> dict[str, Any]:
    from trainer.backend.xla.backend import Chips

    sections = {name: kind(**asked["job"].pop(name)) for name, kind in _SECTIONS.items()}
    config = GemmaConfig(**asked["config"] | {"pattern": tuple(asked["config"]["pattern"])})
    job = schema.Job(**asked["job"], **sections)
    topology = Topology(**asked["topology"])
    chips = Chips(topology.chips, torus=topology.torus, described=True)
    try:
        program = traced(job, config, chips, asked["micro_batches"])
    except ConfigError as error:
        return {"problem": str(error)}
    return {"problem": "", "hlo": program.hlo, "donated": program.donated}


def traced(job: schema.Job, config: GemmaConfig, chips: Chips, micro_batches: int) -> Program:
    """The training step of so many micro-batches for chips that are not attached.

    Loads torch_xla, whose devices are then those of PLACE. Raises ConfigError where the chips cannot share the model.
    """
    import torch

    from data_pipeline.batch import Batch, Cursor
    from trainer.backend.xla.backend import Xla
    from trainer.backend.xla.lowering import lower, nothing
    from trainer.model import Gemma
    from trainer.optim.optimizer import build_optimizer
    from trainer.step import make_train_step

    backend = Xla(job, chips)
    if problems := backend.problems(config):
        raise ConfigError("; ".join(problems))
    with torch.device("meta"):
        model = Gemma(config)
    backend.shard(model)
    optimizer = build_optimizer(model, job.optim, job.precision, backend.adamw)
    step = make_train_step(model, optimizer, job.optim.clip_norm, job.optim.z_loss, backend)
    rows = (job.micro_batch * backend.feeders * backend.world.size, job.data.sequence_length)
    counts = nothing((1,), torch.int64)
    batches = [
        Batch(
            tokens_BS=nothing(rows, torch.int64),
            targets_BS=nothing(rows, torch.int64),
            segments_BS=nothing(rows, torch.int32),
            positions_BS=nothing(rows, torch.int32),
            weights_BS=nothing(rows, torch.float32),
            cu_seqlens_N=counts,
            longest=job.data.sequence_length,
            counts_K=counts,
            cursor=Cursor(0, "", "", "", ""),
        )
        for _ in range(micro_batches)
    ]
    lowered = lower(step, backend.kept, batches)
    return Program(lowered.hlo, lowered.donated)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

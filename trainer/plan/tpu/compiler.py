"""Compiles a traced step with the TPU compiler itself, for slices that are not attached: does it fit, and what moves.

libtpu compiles for a topology that it only describes. Its verdict on memory, and the program with all exchanges in
their order, are on disk long before its code is generated, so the compiler runs in a process of its own, which is ended
once both are there (`fast`). Nothing is executed, so nothing here is a time of a step.

Only this module of `trainer.plan` knows jax and libtpu, of which it needs the versions that torch_xla is bound to:
compiling a text is no public interface of jax.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from conf.exits import ConfigError
from conf.hardware import Hardware
from trainer.plan.tpu import hlo, results
from trainer.plan.tpu.memory import Buffer, Memory, read_memory
from trainer.plan.tpu.text import NAME, prepared, signature
from trainer.plan.tpu.topology import Topology, topology_of
from trainer.plan.tpu.traffic import Exchange, Traffic, by_kind, exchanges, largest

PAIR = {"jax": "0.7.1", "jaxlib": "0.7.1", "libtpu": "0.0.21"}  # what torch_xla 2.9.0 is bound to
REMEDY = "Run `make setup-tpu`, and plan with .venv-tpu/bin/gemcutter; plan.compile=false plans by formulas only"
CACHE = Path("~/.cache/gemcutter/tpu-plans")
LARGEST = 12  # exchanges and buffers that are named
PATIENCE = 3600.0  # seconds that a verdict may take
NEAR = 1 / 64  # of the limit: what code may need beside the data, 24 MB for Gemma 2B; closer to it, it is generated
_POLL = 0.02  # seconds
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the user; both change what the compiler does


class CompilerFailed(RuntimeError):
    """The compiler ended without a verdict: the message holds the end of what it said."""


@dataclass(frozen=True)
class Program:
    """A step as `torch_xla._XLAC._get_xla_tensors_hlo` writes it, for all chips together.

    donated  number of an output -> number of the parameter whose memory it may take, as a step's new parameters and
             moments take that of the old ones
    """

    hlo: str
    donated: dict[int, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Compiled:
    """What the compiler makes of a program, for one chip of a slice.

    fits             whether it has room in the chip's memory: the compiler did not refuse it, and all that it lays out
                     there is within the limit. libtpu 0.0.21 by itself lets outputs pass that have no room beside the
                     arguments, as each alone fits.
    refusal          first line of the compiler's refusal; empty where it gave none, or was not waited for
    hbm_bytes        of memory: arguments, outputs that take no argument's place, constants and temporaries, but not the
                     program's code, some tens of MB; where the compiler refused before it laid them out, the least that
                     it named, or None
    limit_bytes      of memory that a program may take, by the compiler
    argument_bytes   parameters, with the outputs that take their place
    output_bytes     outputs with memory of their own
    temporary_bytes  what is held within the step, and constants
    donated          outputs that take the place of a parameter
    traffic          exchanges in a step, by kind
    exchanges        those by which a chip receives most, in a step
    buffers          the largest in memory
    versions         of the packages that compiled
    topology         as libtpu names it
    chips            of all slices
    seconds          to the verdict, the compiler's start included
    """

    fits: bool
    refusal: str
    hbm_bytes: int | None
    limit_bytes: int
    argument_bytes: int | None
    output_bytes: int | None
    temporary_bytes: int | None
    donated: int
    traffic: dict[str, Traffic]
    exchanges: list[Exchange]
    buffers: list[Buffer]
    versions: dict[str, str]
    topology: str
    chips: int
    seconds: float

    @property
    def received_bytes(self) -> int | None:
        """By one chip in a step; None where the trips of a loop around an exchange cannot be told."""
        received = [kind.received_bytes for kind in self.traffic.values()]
        known = [count for count in received if count is not None]
        return sum(known) if len(known) == len(received) else None


def compile_program(
    program: Program,
    hardware: Hardware,
    slices: int = 1,
    *,
    fast: bool = True,
    cache: Path | None = CACHE,
    patience: float = PATIENCE,
) -> Compiled:
    """What the TPU compiler makes of a program for so many slices; at once where the folder `cache` holds it.

    `fast=False` lets the compiler finish, so that it also shows that code can be generated.

    Raises ConfigError for hardware that is no TPU, for packages that are missing or are not the pair, and where libtpu
    knows no such slice; ValueError where the program is for another number of chips, or donates what cannot be;
    CompilerFailed where the compiler fails, or gives no verdict within `patience` seconds.
    """
    topology = topology_of(hardware, slices)
    versions = found_versions()
    text = prepared(program.hlo, program.donated, topology.chips)
    flags = {name: os.environ.get(name, "") for name in FLAGS}
    asked = {"topology": dataclasses.asdict(topology), "versions": versions, "flags": flags, "fast": fast}
    key = results.key(text, asked)
    if cache is not None and (stored := results.load(cache.expanduser(), key)) is not None:
        return stored_as_compiled(stored)
    compiled = _compile(text, topology, versions, flags, fast, patience)
    if cache is not None:
        results.save(cache.expanduser(), key, dataclasses.asdict(compiled))
    return compiled


def found_versions() -> dict[str, str]:
    """Of the packages that compile. Raises ConfigError where one is missing, or another than torch_xla is bound to."""
    found = {name: version(name) for name in PAIR}
    if found != PAIR:
        wrong = ", ".join(
            f"{name} {found[name]} instead of {wanted}" if found[name] else f"no {name}, which must be {wanted}"
            for name, wanted in PAIR.items()
            if found[name] != wanted
        )
        raise ConfigError(
            f"compiling for a TPU ahead of time needs the packages that torch_xla 2.9.0 is bound to: {sys.prefix} has "
            f"{wrong}. {REMEDY}"
        )
    return PAIR


def version(name: str) -> str | None:
    """Of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compile(
    text: str, topology: Topology, versions: dict[str, str], flags: dict[str, str], fast: bool, patience: float
) -> Compiled:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gemcutter-tpu-") as name:
        folder = Path(name)
        (folder / "program.hlo").write_text(text)
        (folder / "topology.json").write_text(json.dumps(dataclasses.asdict(topology)))
        with _compiler(folder, flags) as child:
            dumped = _wait(child, folder, fast, began + patience)
            seconds = time.monotonic() - began
        limit = _limit(folder)
        refusal = (_outcome(folder) or {}).get("refusal", "")
    module, memory = dumped if dumped else (None, None)
    needed = memory.total if memory else None
    if needed is None and "in memory space hbm" in refusal:
        needed = _bytes(r"Used (\S+) of", refusal)  # the least it needs
    found = exchanges(module) if module else []
    return Compiled(
        fits=not refusal and needed is not None and needed <= limit,
        refusal=refusal,
        hbm_bytes=needed,
        limit_bytes=limit,
        argument_bytes=memory.arguments if memory else None,
        output_bytes=memory.outputs if memory else None,
        temporary_bytes=memory.temporaries + memory.constants if memory else None,
        donated=memory.donated if memory else 0,
        traffic=by_kind(found),
        exchanges=largest(found, LARGEST),
        buffers=[_explained(module, buffer) for buffer in memory.largest(LARGEST)] if module and memory else [],
        versions=versions,
        topology=topology.name,
        chips=topology.chips,
        seconds=round(seconds, 3),
    )


@contextmanager
def _compiler(folder: Path, flags: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that compiles what lies in a folder. It is gone when the context ends."""
    root = str(Path(__file__).parents[3])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        # A second process may compile meanwhile: nothing attached is locked.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        # Else it asks the metadata server of a machine that is none of Google's, for as long as that takes.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "XLA_FLAGS": f"{flags['XLA_FLAGS']} --xla_dump_to={folder / 'dump'} --xla_dump_hlo_as_text".strip(),
    }
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        child = subprocess.Popen(
            [sys.executable, "-m", "trainer.plan.tpu.compiler", str(folder)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=folder,
        )  # fmt: skip
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def _wait(child: subprocess.Popen[bytes], folder: Path, fast: bool, until: float) -> tuple[hlo.Module, Memory] | None:
    """The dumps of the program, when the verdict is known; None where the compiler refused it before it wrote them.

    Raises ConfigError or CompilerFailed where there will be no verdict.
    """
    dumped = None
    while True:
        code = child.poll()
        dumped = dumped or _dumped(folder / "dump")
        if dumped is not None:
            limit, total = _limit(folder), dumped[1].total
            # Beyond the limit the verdict is known, but the compiler generates code before it refuses.
            if total > limit or (fast and total <= limit * (1 - NEAR)):
                return dumped
        if code is not None:
            outcome = _outcome(folder)
            if outcome is not None and outcome["unknown"]:
                raise ConfigError(outcome["unknown"])
            if outcome is None or not (dumped or outcome["refusal"]):
                raise CompilerFailed(f"the TPU compiler ended with {code}. The end of what it said:\n{_tail(folder)}")
            return dumped
        if time.monotonic() > until:
            raise CompilerFailed(f"no verdict of the TPU compiler in time. The end of what it said:\n{_tail(folder)}")
        time.sleep(_POLL)


def _limit(folder: Path) -> int:
    return int(json.loads((folder / "limit.json").read_text())["limit"])


def _outcome(folder: Path) -> dict[str, str] | None:
    """What the compiler's process wrote at its end; None where it did not come to that."""
    path = folder / "outcome.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


def _tail(folder: Path) -> str:
    return (folder / "stderr").read_text(errors="replace")[-3000:].strip()


def _dumped(dump: Path) -> tuple[hlo.Module, Memory] | None:
    """The scheduled program and its memory; None while they are not, or not wholly, written.

    The program is written after the assignment of its buffers.
    """
    for path in sorted(dump.glob(f"*.{NAME}.*after_optimizations_after_buffer_assignment.txt"), reverse=True):
        stem = path.name.removesuffix("_after_buffer_assignment.txt")
        try:
            memory = read_memory((dump / f"{stem}-buffer-assignment.txt").read_text())
            return hlo.parse(path.read_text()), memory
        except (ValueError, FileNotFoundError):
            continue
    return None


_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TILE = 2**12  # bytes of 8 x 128 numbers of fp32, of which arrays are made


def _bytes(pattern: str, refusal: str) -> int:
    """The size that a refusal names there, such as 15.75G. Raises ValueError where it names none."""
    found = re.search(pattern, refusal)
    if found is None or found[1][-1] not in _UNITS:
        raise ValueError(f"the compiler's refusal is not understood: {refusal[:200]!r}")
    return round(float(found[1][:-1]) * _UNITS[found[1][-1]])


def _explained(module: hlo.Module, buffer: Buffer) -> Buffer:
    """A buffer with the operation of the traced program that it comes from."""
    name = buffer.name.partition("{")[0]
    source = next((found[name].source for found in module.computations.values() if name in found), "")
    return dataclasses.replace(buffer, source=source)


def stored_as_compiled(stored: dict[str, Any]) -> Compiled:
    """The reverse of `dataclasses.asdict`."""
    return Compiled(
        **stored
        | {
            "traffic": {kind: Traffic(**one) for kind, one in stored["traffic"].items()},
            "exchanges": [Exchange(**one) for one in stored["exchanges"]],
            "buffers": [Buffer(**one) for one in stored["buffers"]],
        }
    )


def _main(folder: Path) -> int:
    """The process that compiles: what lies in a folder, for the topology beside it."""
    end_with_parent()
    described = Topology(**json.loads((folder / "topology.json").read_text()))
    from jax.errors import JaxRuntimeError

    outcome = {"refusal": "", "unknown": ""}
    try:
        compiler = _Compiler(described)
    except ValueError as error:
        outcome["unknown"] = str(error)
    else:
        try:
            _write(folder / "limit.json", {"limit": compiler.limit()})
            outcome["refusal"] = compiler.refusal((folder / "program.hlo").read_text()).split("\n", 1)[0]
        except JaxRuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    _write(folder / "outcome.json", outcome)
    return 0


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, as another process waits for it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def end_with_parent() -> None:
    """Who asked may be killed: then nobody waits for the answer."""
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class _Compiler:
    """libtpu's, for a topology that it describes. Raises ValueError where it describes none of that name."""

    def __init__(self, topology: Topology) -> None:
        from jax.experimental import topologies

        arguments = {
            key: tuple(value) if isinstance(value, list) else value for key, value in topology.arguments.items()
        }
        try:
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **arguments)
        except Exception as error:  # jax names no class
            raise ValueError(f"libtpu describes no {topology.name} with {arguments}: {error}") from error
        # Neighbours in the program are neighbours on the torus: see `trainer.backend.xla.region.Mesh`.
        self.devices = sorted(
            described.devices,
            key=lambda device: (getattr(device, "slice_index", 0), tuple(device.coords), device.id),
        )
        if len(self.devices) != topology.chips:
            raise ValueError(f"libtpu describes {topology.name} as {len(self.devices)} devices, not {topology.chips}")

    def refusal(self, text: str) -> str:
        """Why a program cannot run for want of memory; empty where it can."""
        from jax.errors import JaxRuntimeError

        try:
            self._compile(text)
        except JaxRuntimeError as error:
            if "Ran out of memory in memory space" not in str(error):
                raise
            return str(error)
        return ""

    def limit(self) -> int:
        """Bytes of a chip that a program may take: refusals tell by how much an argument is too large.

        What they say is rounded to four figures or so, so that each argument is closer to the limit than the last.
        """
        limit = _bytes(r"Used \S+ of (\S+) hbm", self.refusal(_probe(120 * 2**30)))
        for more in (2**24, 2**16):
            argument = (limit + more) // _TILE * _TILE
            limit = argument - _bytes(r"Exceeded hbm capacity by (\S+)\.\n", self.refusal(_probe(argument)))
        return limit // _TILE * _TILE

    def _compile(self, text: str) -> None:
        import numpy as np
        from jax._src import compiler
        from jax._src.lib import xla_client

        xla = xla_client._xla
        module = xla.hlo_module_from_text(text)
        computation = xla_client.XlaComputation(module.as_serialized_hlo_module_proto())
        mlir = xla.mlir.xla_computation_to_mlir_module(computation)
        ids = np.array([[device.id for device in self.devices]])
        options = compiler.get_compile_options(
            num_replicas=1, num_partitions=len(self.devices), device_assignment=ids, use_spmd_partitioning=True
        )
        build = options.executable_build_options
        build.use_shardy_partitioner = False  # torch_xla's programs are GSPMD's
        # Annotations sit on operations: they spread to parameters and outputs that have none of their own.
        of = signature(text)
        build.allow_spmd_sharding_propagation_to_parameters = [n not in of.held for n in range(len(of.parameters))]
        build.allow_spmd_sharding_propagation_to_output = [not of.outputs_held] * len(of.outputs)
        self.devices[0].client.compile(mlir.encode(), xla.DeviceList(tuple(self.devices)), options)


def _probe(size: int) -> str:
    """A program whose argument takes so many bytes, rounded down to whole tiles."""
    shape = f"f32[{size // _TILE},8,128]"
    return f"""HloModule probe, entry_computation_layout={{({shape}{{2,1,0}})->{shape}{{2,1,0}}}}

ENTRY %main (p: {shape}) -> {shape} {{
  %p = {shape}{{2,1,0}} parameter(0)
  ROOT %negated = {shape}{{2,1,0}} negate(%p)
}}
"""


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))

"""A job on this machine: how many processes, which command, and its exit code handed through."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from conf import schema
from conf.check import check, check_mesh_size, check_rows
from conf.compose import refuse
from conf.hardware import on_tpu
from conf.processes import STOP_SIGNALS, ignore, patient, starter

ROOMS = {
    "curate": "data_pipeline",
    "tokenize": "data_pipeline",
    "train": "trainer",
    "evaluate": "trainer",
    "export": "trainer",
    "import": "trainer",
    "plan": "trainer",
}


def run(kind: str, job: schema.Job, overrides: list[str]) -> int:
    """Run the job in processes of its own and return its exit code (128 + n when signal n ended it).

    Raises ConfigError when the mesh does not fit the processes of this machine.
    """
    processes = training_processes(job) if kind == "train" else 1
    environment = dict(os.environ)
    # Each process gets its share of the cores: torch would otherwise start as many threads in each as there are cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    # Threads that spin for long while they wait starve each other as soon as anything else runs. Measured on two cores,
    # tokens/s of the demo alone and beside three busy processes: spinning 4,010 and 550, sleeping at once 3,400 and
    # 1,030, spinning briefly 4,030 and 1,030.
    environment.setdefault("GOMP_SPINCOUNT", "20000")
    return call(command(kind, processes, overrides), environment)


def of_run(name: str, arguments: list[str]) -> int:
    """A plain command that needs what the trainer knows of a run."""
    return call([sys.executable, "-P", "-m", "trainer", name, *arguments], dict(os.environ))


def command(kind: str, processes: int, overrides: list[str]) -> list[str]:
    """The worker's command line. `-P` keeps a folder of the user's that is named like one of ours from shadowing it."""
    python = [sys.executable, "-P", "-m"]
    if processes > 1:
        return [*python, "trainer.elastic", str(processes), kind, *overrides]
    return [*python, ROOMS[kind], kind, *overrides]


def training_processes(job: schema.Job) -> int:
    """One process for all TPU chips, one per GPU where GPUs are used, else what the mesh axes multiply to."""
    if job.backend.name == "xla":
        return 1  # whether the mesh fits the chips of all hosts, the trainer sees
    if job.backend.name == "auto" and on_tpu():
        problems = check(dataclasses.replace(job, backend=dataclasses.replace(job.backend, name="xla")))
        refuse([f"on this TPU host backend=auto is xla: {problem}" for problem in problems])
        return 1
    gpus = visible_gpus() if job.backend.name in ("auto", "cuda") else 0
    planned = schema.planned_processes(job)
    if job.launch.processes is None and (gpus or planned is None):
        planned = max(1, gpus)
        refuse(check_mesh_size(job, planned, "the number of GPUs") + check_rows(job, planned))
    assert planned is not None
    return planned


def visible_gpus() -> int:
    """GPUs this process may use, without importing torch: the driver's list, narrowed by CUDA_VISIBLE_DEVICES."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if chosen is None else min(present, len([device for device in chosen.split(",") if device.strip()]))


def call(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a child to its end; a signal of `STOP_SIGNALS` for us reaches it, so that it can save and say so."""
    asked = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        child.send_signal(number)

    with patient():
        child = subprocess.Popen(arguments, env=environment | starter())
        previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if asked:  # we end with the child
            ignore()
    return code if code >= 0 else 128 - code

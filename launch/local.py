"""A job on this machine: how many processes, which command, and its exit code handed through."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from conf import schema
from conf.check import check, check_mesh_size, check_rows
from conf.compose import refuse
from conf.hardware import on_tpu
from conf.processes import starter, undisturbed
from launch.restarts import Stopping, keep_running

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

    Training is started again as `launch.restarts` allows. Raises ConfigError when the mesh does not fit the processes
    of this machine.
    """
    processes = training_processes(job) if kind == "train" else 1
    environment = dict(os.environ)
    # Each process gets its share of the cores: torch would otherwise start as many threads in each as there are cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    # Threads that spin for long while they wait starve each other as soon as anything else runs. Measured on two cores,
    # tokens/s of the demo alone and beside three busy processes: spinning 4,010 and 550, sleeping at once 3,400 and
    # 1,030, spinning briefly 4,030 and 1,030.
    environment.setdefault("GOMP_SPINCOUNT", "20000")
    if job.launch.nodes > 1:  # when a host is lost, each connection to it would end with a page of C++ frames
        environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = command(kind, processes, overrides, job.launch)
    if kind != "train":
        return call(arguments, environment)
    return keep_running(job, lambda stopping: call_while(stopping, arguments, environment))


def of_run(name: str, arguments: list[str]) -> int:
    """A plain command that needs what the trainer knows of a run."""
    return call([sys.executable, "-P", "-m", "trainer", name, *arguments], dict(os.environ))


def command(kind: str, processes: int, overrides: list[str], launch: schema.Launch) -> list[str]:
    """The worker's command line for so many processes of this host.

    `-P` keeps a folder of the user's that is named like one of ours from shadowing it.
    """
    python = [sys.executable, "-P", "-m"]
    if kind != "train":
        return [*python, ROOMS[kind], kind, *overrides]
    hosts = [f"--nodes={launch.nodes}", f"--rendezvous={launch.rendezvous}"] if launch.nodes > 1 else []
    return [*python, "trainer.elastic", *hosts, str(processes), kind, *overrides]


def training_processes(job: schema.Job) -> int:
    """Processes of this host: one for all TPU chips, one per GPU where GPUs are used, else its share of what the mesh
    axes multiply to."""
    if job.backend.name == "xla":
        return 1  # whether the mesh fits the chips of all hosts, the trainer sees
    if job.backend.name == "auto" and on_tpu():
        problems = check(dataclasses.replace(job, backend=dataclasses.replace(job.backend, name="xla")))
        refuse([f"on this TPU host backend=auto is xla: {problem}" for problem in problems])
        return 1
    gpus = visible_gpus() if job.backend.name in ("auto", "cuda") else 0
    planned = schema.planned_processes(job)
    if job.launch.processes is None and (gpus or planned is None):
        planned = max(1, gpus) * job.launch.nodes
        refuse(check_mesh_size(job, planned, "the number of GPUs") + check_rows(job, planned))
    assert planned is not None
    return planned // job.launch.nodes


def visible_gpus() -> int:
    """GPUs this process may use, without importing torch: the driver's list, narrowed by CUDA_VISIBLE_DEVICES."""
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if chosen is None else min(present, len([device for device in chosen.split(",") if device.strip()]))


def call(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a child to its end; one of `stop_signals` for us reaches it, so that it can save and say so."""
    with Stopping() as stopping:
        return call_while(stopping, arguments, environment)


def call_while(stopping: Stopping, arguments: list[str], environment: dict[str, str]) -> int:
    """Run a child to its end, where signals are taken care of already."""
    with undisturbed():
        child = subprocess.Popen(arguments, env=environment | starter())
        stopping.send = child.send_signal
    if stopping.asked:  # just before there was a child to ask
        child.terminate()
    try:
        code = child.wait()
    finally:
        stopping.send = None
    return code if code >= 0 else 128 - code

"""The device a job runs on."""

from __future__ import annotations

import importlib.util

import torch

from conf import schema
from conf.exits import ConfigError
from conf.hardware import on_tpu
from trainer.backend.base import Backend, World
from trainer.backend.native import Native

__all__ = ["Backend", "World", "choose"]


def choose(job: schema.Job) -> Backend:
    """The backend that `backend.name` asks for; `auto` takes TPUs where there are some, then CUDA, else the CPU.

    Raises ConfigError where the device is not here or the processes do not fit the mesh.
    """
    name = job.backend.name
    if name == "auto":
        name = "xla" if on_tpu() else "cuda" if torch.cuda.is_available() else "cpu"
    if name == "xla":
        if importlib.util.find_spec("torch_xla") is None:
            raise ConfigError(
                "backend=xla, but torch_xla is not installed here: use the environment that `make setup-tpu` makes"
            )
        from trainer.backend.xla import Xla  # loads torch_xla

        return Xla(job)
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "backend=cuda, but torch finds no GPU here: install a CUDA build of torch and its driver, or use "
            "backend=cpu"
        )
    return Native(name, job)

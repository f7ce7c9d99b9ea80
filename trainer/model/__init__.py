"""The model room: what a Gemma is and computes. Imports torch only; knows no device, no run, no configuration file.

What a Gemma is, its numbers, needs no torch, which is loaded with the first use of what computes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trainer.model.config import GemmaConfig, flops_per_token, num_parameters
from trainer.model.sizes import SIZES, build_config

if TYPE_CHECKING:
    from trainer.model.gemma import Gemma, init_weights
    from trainer.model.generate import greedy

__all__ = [
    "SIZES",
    "Gemma",
    "GemmaConfig",
    "build_config",
    "flops_per_token",
    "greedy",
    "init_weights",
    "num_parameters",
]

_COMPUTES = {"Gemma": "gemma", "init_weights": "gemma", "greedy": "generate"}


def __getattr__(name: str) -> Any:
    if name in _COMPUTES:
        return getattr(importlib.import_module(f"trainer.model.{_COMPUTES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

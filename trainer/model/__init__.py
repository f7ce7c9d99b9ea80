"""The model room: what a Gemma is and computes. Imports torch only; knows no device, no run, no configuration file."""

from trainer.model.config import GemmaConfig, flops_per_token, num_parameters
from trainer.model.gemma import Gemma, init_weights
from trainer.model.generate import greedy
from trainer.model.sizes import SIZES, build_config

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

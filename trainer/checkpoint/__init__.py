"""Checkpoints that can be trusted: sharded safetensors, a manifest of every byte, and a COMMIT that is written last."""

from trainer.checkpoint.directory import Committed, SaveError, committed_steps, find, retain, save, step_name, withdraw
from trainer.checkpoint.parts import load_tensors, read_tensor

__all__ = [
    "Committed",
    "SaveError",
    "committed_steps",
    "find",
    "load_tensors",
    "read_tensor",
    "retain",
    "save",
    "step_name",
    "withdraw",
]

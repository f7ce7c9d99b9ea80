"""TPUs through torch_xla: one process on each host drives its chips, and one program spans all of them (SPMD)."""

from trainer.backend.xla.backend import Xla

__all__ = ["Xla"]

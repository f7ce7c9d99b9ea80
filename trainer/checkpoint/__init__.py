"""Checkpoints that can be trusted: sharded safetensors, a manifest of every byte, and a COMMIT that is written last.

What needs torch is loaded when it is first asked for: importing torch takes two seconds, and who looks at files only
need not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trainer.checkpoint.committed import BrokenError, Committed, committed_steps, find, step_name
from trainer.checkpoint.newest import newest, steps_of
from trainer.checkpoint.retention import retain, withdraw
from trainer.checkpoint.store import Folder, Store, open_store

if TYPE_CHECKING:
    from trainer.checkpoint.agreement import on_all
    from trainer.checkpoint.copying import copy_commit, copy_payload
    from trainer.checkpoint.meeting import meet
    from trainer.checkpoint.parts import Held, Holding, holding, load_tensors, read_tensor
    from trainer.checkpoint.resume import newest_sound, verify_together
    from trainer.checkpoint.saving import (
        Index,
        commit,
        committing,
        discard,
        new_attempt,
        reading_back,
        save,
        verify_written,
        write_payload,
    )
    from trainer.checkpoint.snapshot import Snapshot

_WITH_TORCH = {
    "agreement": ("on_all",),
    "copying": ("copy_commit", "copy_payload"),
    "snapshot": ("Snapshot",),
    "saving": (
        "Index",
        "commit",
        "committing",
        "discard",
        "new_attempt",
        "reading_back",
        "save",
        "verify_written",
        "write_payload",
    ),
    "meeting": ("meet",),
    "parts": ("Held", "Holding", "holding", "load_tensors", "read_tensor"),
    "resume": ("newest_sound", "verify_together"),
}

__all__ = [
    "BrokenError",
    "Committed",
    "Folder",
    "Held",
    "Holding",
    "Index",
    "Snapshot",
    "Store",
    "commit",
    "committed_steps",
    "committing",
    "copy_commit",
    "copy_payload",
    "discard",
    "find",
    "holding",
    "load_tensors",
    "meet",
    "new_attempt",
    "newest",
    "newest_sound",
    "on_all",
    "open_store",
    "read_tensor",
    "reading_back",
    "retain",
    "save",
    "step_name",
    "steps_of",
    "verify_together",
    "verify_written",
    "withdraw",
    "write_payload",
]


def __getattr__(name: str) -> Any:
    for module, names in _WITH_TORCH.items():
        if name in names:
            return getattr(importlib.import_module(f"trainer.checkpoint.{module}"), name)
    raise AttributeError(name)

"""Trains, and writes down what is compiled and copied to the host between the programs that the chips are given.

    python -m tests.xla.watched_run OUTPUT train OVERRIDE...

OUTPUT gets a list in order of time. An entry is a call of a program, [function, number of its calls so far, programs
compiled before and behind it, copies to the host so far], or a copy to the host that torch asks for, [function, number]
of the call that made what is copied.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch_xla
import torch_xla.debug.metrics as counted
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.__main__ import main
from trainer.backend.xla.program import Program

LOG: list[list[Any]] = []
CALLS: Counter[str] = Counter()
MADE: list[tuple[Tensor, str, int]] = []  # what calls resulted in; kept, so that no other tensor takes an id


def compiled() -> int:
    return int(counted.counter_value("UncachedCompile") or 0)


def copied() -> int:
    found = counted.metric_data("TransferFromDeviceTime")
    return int(found[0]) if found else 0


def identity(tensor: Tensor) -> int:
    """The same for every name that torch has of it."""
    return int(torch_xla._XLAC._xla_get_tensor_id(tensor))


class Copies(TorchDispatchMode):
    """Every operation that makes something on the host of something on the chips."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        inside = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.device.type == "xla"]
        on_host = [x for x in tree_leaves(made) if isinstance(x, float | int) or (isinstance(x, Tensor) and x.is_cpu)]
        if inside and on_host:
            of = [
                [name, number] for tensor, name, number in MADE if any(identity(tensor) == identity(x) for x in inside)
            ]
            LOG.append(of[0] if of else [str(func), 0])
        return made


def watched(self: Program, *arguments: Any) -> Any:
    name = self._function.__name__
    CALLS[name] += 1
    before, copies = compiled(), copied()
    result = CALL(self, *arguments)
    MADE.extend((x, name, CALLS[name]) for x in tree_leaves(result) if isinstance(x, Tensor))
    LOG.append([name, CALLS[name], before, compiled(), copies])
    return result


if __name__ == "__main__":
    CALL, Program.__call__ = Program.__call__, watched  # type: ignore[method-assign]
    with Copies():
        code = main(sys.argv[2], sys.argv[3:])
    LOG.append(["end", 1, compiled(), compiled(), copied()])
    Path(sys.argv[1]).write_text(json.dumps(LOG))
    sys.exit(code)

"""Processes that train together, as copies of one that has imported all that they need: sooner begun than new ones."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch

from trainer.elastic import most_severe


def together(processes: int, work: Callable[[], None], name: str) -> None:
    """Run `work` in so many processes whose environment is that of ranks of one job; `name` tells which one failed."""
    if code := exit_code(processes, work):
        raise SystemExit(f"{name}: a process ended with {code}")


def exit_code(processes: int, work: Callable[[], None]) -> int:
    """The same; gives how they ended, as `trainer.elastic` does."""
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}

    def as_rank(rank: int) -> None:
        os.environ |= job | {"RANK": str(rank)}
        work()

    started = [fork.Process(target=as_rank, args=(rank,)) for rank in range(processes)]
    for one in started:
        one.start()
    for one in started:
        one.join()
    failed = [one.exitcode for one in started if one.exitcode]
    return most_severe(failed) if failed else 0

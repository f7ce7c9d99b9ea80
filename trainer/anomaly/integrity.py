"""Silent corruption: bits of the state that nobody meant to change, and computations that give other bits than before.

State is held against copies: processes that hold the same part of a tensor must hold the same bits after an update, as
they add up the same gradients (`digest_every`). Where nobody else holds a part, it is held against itself, from one
update to the next one. And a step may be computed twice (`replay_every`). What differs tells which process it was.
Knows no file.

Shape suffixes: P processes, T tensors, F facts that are held against each other.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from conf import schema
from trainer.anomaly.trouble import Corrupt, Flaw
from trainer.report import Report
from trainer.run import Run
from trainer.sharded import own_part

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number
_CHUNK = 2**20  # numbers that are made 8 bytes wide at a time
_HOST = 64  # characters of a host's name
_SHOWN = 4  # flaws that a message names


class Integrity:
    """The checks of a run, as one of its processes makes them; every process calls them at the same steps."""

    def __init__(self, job: schema.Job, run: Run) -> None:
        self._keys, self._run, self._backend = job.integrity, run, run.backend
        self._places_PT: list[list[int]] | None = None
        self._resting: tuple[int, Tensor] | None = None  # the step after which digests were taken, and they, [T, 2]

    def checked(self, accumulate: Callable[[], Tensor]) -> Tensor:
        """The loss and the gradients that `accumulate` computes, after which the state still is what it was.

        Raises Corrupt where it is not, or where computing them again at a step of `replay_every` gives other bits.
        """
        loss = self._replayed(accumulate) if _due(self._run.step + 1, self._keys.replay_every) else accumulate()
        if self._resting is not None:
            (step, before_T2), self._resting = self._resting, None
            changed_PT = self._of_all((self._digests() != before_T2).any(1).long()[:, None])[:, :, 0].tolist()
            names = list(self._run.tensors())
            flaws = [
                Flaw(name, (rank,))
                for rank, changed_T in enumerate(changed_PT)
                for name, changed in zip(names, changed_T, strict=True)
                if changed
            ]
            if flaws:
                self._raise(flaws, f"changed between the updates of steps {step} and {step + 1}", state=True)
            self._run.digested = step
        return loss

    def after_update(self, report: Report) -> None:
        """Hold the state against that of other processes, if that is due after this step. Raises Corrupt."""
        run = self._run
        if not _due(run.step, self._keys.digest_every):
            return
        began = time.perf_counter()
        own_T2 = self._digests()
        digests_PT2 = self._of_all(own_T2).tolist()
        flaws = odd_ones(list(run.tensors()), self._places(), digests_PT2)
        if flaws:
            self._raise(flaws, f"had different copies after step {run.step}", state=True)
        self._resting = run.step, own_T2
        report.add(digest_seconds=time.perf_counter() - began)

    def _digests(self) -> Tensor:
        """[T, 2] int64, of this process's part of each tensor of the state."""
        return torch.stack([digest(own_part(tensor)) for tensor in self._state().values()])

    def _state(self) -> dict[str, Tensor]:
        tensors = self._run.tensors()
        return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}

    def _places(self) -> list[list[int]]:
        """Of each process and tensor a number that is the same where they hold the same part."""
        if self._places_PT is None:
            own_T = torch.tensor([_place(tensor) for tensor in self._state().values()], device=self._backend.device)
            self._places_PT = self._of_all(own_T[:, None])[:, :, 0].tolist()
        return self._places_PT

    def _of_all(self, own: Tensor) -> Tensor:
        """What each process has of an int64 tensor of one shape, along a new first dimension."""
        processes = self._backend.processes
        everyone = torch.zeros(processes.size, *own.shape, dtype=torch.int64, device=self._backend.device)
        everyone[processes.rank] = own
        return self._backend.total(everyone)

    def _replayed(self, accumulate: Callable[[], Tensor]) -> Tensor:
        """What `accumulate` gives, once it has given the same bits twice."""
        first_F2, _ = self._traced(accumulate)
        self._run.model.zero_grad(set_to_none=True)
        second_F2, loss = self._traced(accumulate)
        differs_PF = self._of_all((first_F2 != second_F2).any(1).long()[:, None])[:, :, 0].tolist()
        if any(map(any, differs_PF)):
            # What one process computed wrongly reaches the others with the next exchange: the first to differ did it.
            since = [differs_F.index(1) if any(differs_F) else len(differs_F) for differs_F in differs_PF]
            shared = len(differs_PF[0]) - len(list(self._run.model.parameters()))
            ranks = tuple(rank for rank, at in enumerate(since) if at == min(since))
            what = "loss" if min(since) == 0 else "gradients of blocks" if min(since) < shared else "summed gradients"
            self._raise(
                [Flaw(what, ranks)], f"of step {self._run.step + 1} had other bits when computed again", state=False
            )
        return loss

    def _traced(self, accumulate: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Digests [F, 2] of what a process computes, in the order in which it does, and the loss.

        The loss; the gradients that leave blocks backwards, which are this process's own; its part of the gradients of
        parameters, which are sums of those of all processes.
        """
        with self._watched_blocks() as seen:
            loss = accumulate()
        gradients = [parameter.grad for parameter in self._run.model.parameters()]
        parts = [own_part(gradient) for gradient in gradients if gradient is not None]
        return torch.stack([digest(loss), *seen, *map(digest, parts)]), loss

    @contextmanager
    def _watched_blocks(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def watch(_module: object, _inputs: object, x_BSD: Tensor) -> None:
            x_BSD.register_hook(lambda gradient: seen.append(digest(gradient)))

        handles = [block.register_forward_hook(watch) for block in self._run.model.blocks]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _raise(self, flaws: list[Flaw], happened: str, *, state: bool) -> None:
        """Raise Corrupt, on every process, with the hosts of those that are named."""
        name = socket.gethostname().encode()[:_HOST].ljust(_HOST, b"\0")
        names = self._of_all(torch.tensor(list(name), device=self._backend.device)).tolist()
        hosts = {
            rank: bytes(names[rank]).rstrip(b"\0").decode(errors="replace") for flaw in flaws for rank in flaw.ranks
        }
        shown = [f"{flaw.what} on {_who(flaw.ranks, hosts)}" for flaw in flaws[:_SHOWN]]
        more = f" and {len(flaws) - _SHOWN} more" if len(flaws) > _SHOWN else ""
        run_id = self._run.origin["run_id"]
        raise Corrupt(f"{', '.join(shown)}{more} {happened} of {run_id}", flaws, hosts, state)


def digest(part: Tensor) -> Tensor:
    """[2] int64 of a tensor's bits: the sum of its numbers read as integers, and their sum weighted by place, mod 2^64.

    A single flipped bit moves the first by a power of two below 2^64, so it always shows. So do several in one number;
    of flips in several numbers the two sums together miss what cancels out in both.
    """
    bits = part.detach().contiguous().flatten().view(_INTEGERS[part.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=part.device)
    for first in range(0, len(bits), _CHUNK):
        wide = bits[first : first + _CHUNK].long()
        places = torch.arange(first + 1, first + 1 + len(wide), device=part.device)
        sums[0] += wide.sum()
        sums[1] += (wide * places).sum()
    return sums


def odd_ones(names: list[str], places_PT: list[list[int]], digests_PT2: list[list[list[int]]]) -> list[Flaw]:
    """The tensors of which processes hold the same part with different bits, and who differs from most of them."""
    flaws = []
    for number, name in enumerate(names):
        holders: defaultdict[int, list[int]] = defaultdict(list)
        for rank, places_T in enumerate(places_PT):
            holders[places_T[number]].append(rank)
        for ranks in holders.values():
            said = {rank: tuple(digests_PT2[rank][number]) for rank in ranks}
            (usual, most), *others = Counter(said.values()).most_common()
            if others:
                clear = 2 * most > len(ranks)
                flaws.append(Flaw(name, tuple(rank for rank in ranks if not clear or said[rank] != usual)))
    return flaws


def _place(tensor: Tensor) -> int:
    """A number for the part of a tensor that this process holds."""
    shape, offset = tuple(tensor.shape), (0,) * tensor.ndim
    if isinstance(tensor, DTensor):
        shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int.from_bytes(hashlib.sha256(json.dumps([*shape, *offset]).encode()).digest()[:7], "little")


def _who(ranks: tuple[int, ...], hosts: dict[int, str]) -> str:
    return "rank " + " or ".join(f"{rank} ({hosts[rank]})" for rank in ranks)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0

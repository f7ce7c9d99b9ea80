"""What every script of this folder shares: its two commands and how it is timed.

    python -m tests.bench.peers.NAME prepare DOCS OUT S
    python -m tests.bench.peers.NAME read OUT S B SECONDS [VARIANT]

`prepare` turns DOCS (tokens.npy and lengths.npy, see `tests/bench/corpus.py`) into the peer's own format; it is not
timed. `read` loads batches for about SECONDS after a few to warm up, and prints one line of JSON. A peer offers its
ways to read as variants; the first is the fastest that was found, and the others stay so that this can be checked.

A batch is `tokens` and `targets`, int64 torch tensors [B, S]. Peers may give them as two views of one array of rows of
S + 1, which costs them one copy instead of two. Documents come in their order, unshuffled, and begin again at the end.

Needs only the standard library, numpy and torch: it runs in the environments of all peers.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Batches = Iterator[tuple[Tensor, ...]]
Reader = Callable[[Path, int, int], Batches]  # folder, S, B -> batches without end

WARM_UP = 20  # batches


class Variant(NamedTuple):
    """One way to read, and the settings it stands for in a sentence."""

    read: Reader
    settings: str


class Documents(NamedTuple):
    """Tokenised documents end to end."""

    tokens: np.ndarray  # 1-D uint16 or uint32, memory-mapped
    lengths: np.ndarray  # uint32

    @classmethod
    def open(cls, folder: Path) -> Documents:
        """Those of a DOCS folder."""
        return cls(np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "lengths.npy"))

    def __iter__(self) -> Iterator[np.ndarray]:  # type: ignore[override]
        """The tokens of each document."""
        at = 0
        for length in self.lengths.tolist():
            yield self.tokens[at : at + length]
            at += length

    def rows(self, width: int) -> np.ndarray:
        """The documents end to end, cut into rows; what does not fill a row is dropped."""
        return self.tokens[: len(self.tokens) // width * width].reshape(-1, width)


def inputs_and_targets(rows: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
    """Rows of S + 1 tokens of any integer type as two int64 views."""
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(rows.astype(np.int64))
    whole = rows.to(torch.int64)
    return whole[:, :-1], whole[:, 1:]


def run(prepare: Callable[[Documents, Path, int], None], variants: dict[str, Variant]) -> None:
    """The command line of a peer."""
    command, *arguments = sys.argv[1:]
    if command == "prepare":
        documents, out, S = arguments
        prepare(Documents.open(Path(documents)), Path(out), int(S))
    elif command == "read":
        out, S, B, seconds, *chosen = arguments
        name = chosen[0] if chosen else next(iter(variants))
        print(json.dumps(measure(variants[name], Path(out), int(S), int(B), float(seconds)) | {"variant": name}))
    else:
        raise SystemExit(f"{command}: no such command; there are prepare and read")


def measure(variant: Variant, out: Path, S: int, B: int, seconds: float) -> dict[str, Any]:
    """Load batches for about so many seconds."""
    torch.set_num_threads(1)
    batches = variant.read(out, S, B)
    for _ in range(WARM_UP):
        tokens, targets, *_rest = next(batches)
        for tensor in (tokens, targets):
            assert tensor.shape == (B, S), tensor.shape
            assert tensor.dtype == torch.int64, tensor.dtype
    gc.collect()
    gc.freeze()  # spares everyone the same walks through what libraries hold
    count = 0
    cpu, start = _cpu_seconds(), time.perf_counter()
    now, end = start, start + seconds
    while now < end:
        next(batches)
        count += 1
        now = time.perf_counter()
    return {
        "tokens": count * B * S,
        "seconds": now - start,
        "cpu_seconds": _cpu_seconds() - cpu,
        "batches": count,
        "settings": variant.settings,
    }


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

"""What every trainer of this folder shares: the model, the optimizer, and how it is told to take steps.

    python -m tests.bench.peers.NAME FOLDER VARIANT

A trainer stays and answers each line of its input with a line of JSON. The first line comes unasked, once the trainer
is ready:

    {"imported_bytes", "settings"}   resident memory after imports, before anything is built
    "run N" -> {"seconds", "peak_bytes": the most ever, "results": [of each step]}

A step reads a micro-batch, computes loss and gradients, clips them and updates; its result tells `loss`, nats per
token. FOLDER is what `tests/bench/ours_training.py prepare` writes: `micro_batches.npz` (tokens, targets, weights and
segments, each [N, B, S]; the first that our own trainer reads) and `weights.safetensors`, the same initial weights for
all under the names of Hugging Face's Gemma.

Needs only the standard library, numpy, torch and safetensors: it runs in the environments of all peers.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# Gemma 1 at a size that two cores train at some thousand tokens per second.
D, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FF, VOCAB = 512, 8, 4, 1, 128, 2048, 32_768
B, S = 4, 1024
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0

IGNORED = -100  # what torch's cross entropy takes no notice of

Step = Callable[[], dict[str, float]]


class Variant(NamedTuple):
    """One way to train, and the settings it stands for in a sentence."""

    start: Callable[[Path], Step]
    settings: str


def run(variants: dict[str, Variant]) -> None:
    """The command line of a trainer."""
    folder, name = sys.argv[1:]
    # Libraries print what they like; the answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    imported = resident_bytes()
    step = variants[name].start(Path(folder))
    print(json.dumps({"imported_bytes": imported, "settings": variants[name].settings}), file=answers)
    for line in sys.stdin:
        command, count = line.split()
        if command != "run":
            raise SystemExit(f"{command}: no such command; there is run")
        began = time.perf_counter()
        results = [step() for _ in range(int(count))]
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(), "results": results}), file=answers)


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """The most memory of this process that was ever resident."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def micro_batches(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, int64 [B, S], for ever; a target that does not count is IGNORED."""
    with np.load(folder / "micro_batches.npz") as file:
        tokens, targets = file["tokens"], np.where(file["weights"] > 0, file["targets"], IGNORED)
    for number in itertools.cycle(range(len(tokens))):
        yield torch.from_numpy(tokens[number]), torch.from_numpy(targets[number])


def plain_step(
    model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], batches: Iterator[tuple[Tensor, Tensor]]
) -> Step:
    """The step of a trainer in plain PyTorch: float32 weights, bfloat16 autocast, fused AdamW."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True
    )

    def step() -> dict[str, float]:
        tokens_BS, targets_BS = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(tokens_BS, targets_BS)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item()}

    return step

"""Our loss alone, at Gemma's 256,000 words, in the protocol of `peers/training.py`.

The variants `time-D` tell the seconds of loss with gradients, and of the three matrix products it is made of, one after
the other; `memory-R` the most memory that R rows take beyond their inputs, in a process that did nothing before. Both
with a vocabulary for which the logits of all rows would be the largest tensor by far.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tests.bench.peers.training import Step, Variant, peak_bytes, resident_bytes, run
from trainer.model.loss import LEAST_ROWS, fusible_chunk_loss, token_loss

VOCAB = 256_000
WIDTHS = (512, 2048)  # of the model of this benchmark, and of the smallest that was released with this vocabulary
TIMED_ROWS = 1024  # two chunks
MEMORY_ROWS = (1024, 4096)
MEMORY_WIDTH = 512


def _inputs(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_RD = torch.randn(rows, width, generator=generator).bfloat16().requires_grad_()
    embedding_VD = (torch.randn(VOCAB, width, generator=generator) * width**-0.5).bfloat16().requires_grad_()
    targets_R = torch.randint(VOCAB, (rows,), generator=generator)
    return x_RD, embedding_VD, targets_R, torch.full((rows,), 1 / rows)


def _timed(width: int, folder: Path) -> Step:
    x_RD, embedding_VD, targets_R, weights_R = _inputs(TIMED_ROWS, width)
    chunk = torch.compile(fusible_chunk_loss)
    left_RD, right_VD = x_RD.detach(), embedding_VD.detach()
    logits_RV = torch.empty(TIMED_ROWS, VOCAB, dtype=torch.bfloat16)
    grad_x_RD, grad_embedding_VD = torch.empty_like(left_RD), torch.empty_like(right_VD)

    def loss() -> None:
        token_loss(x_RD, embedding_VD, targets_R, weights_R, None, 0.0, chunk).backward()
        x_RD.grad = embedding_VD.grad = None

    def products() -> None:
        torch.mm(left_RD, right_VD.T, out=logits_RV)
        torch.mm(logits_RV, right_VD, out=grad_x_RD)
        torch.mm(logits_RV.T, left_RD, out=grad_embedding_VD)

    def step() -> dict[str, float]:
        return {"loss": _seconds(loss), "products": _seconds(products)}

    return step


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _memory(rows: int, folder: Path) -> Step:
    x_RD, embedding_VD, targets_R, weights_R = _inputs(rows, MEMORY_WIDTH)
    chunk = torch.compile(fusible_chunk_loss)
    # Compiled for a whole chunk, and threads started, before anything is counted.
    token_loss(*_inputs(LEAST_ROWS, 16), None, 0.0, chunk).backward()

    def step() -> dict[str, float]:
        before = resident_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        token_loss(x_RD, embedding_VD, targets_R, weights_R, None, 0.0, chunk).backward()
        return {"extra_bytes": peak_bytes() - before}

    return step


if __name__ == "__main__":
    run(
        {
            f"time-{width}": Variant(partial(_timed, width), f"{TIMED_ROWS} rows of {width}, bf16, compiled chunks")
            for width in WIDTHS
        }
        | {
            f"memory-{rows}": Variant(partial(_memory, rows), f"{rows} rows of {MEMORY_WIDTH}, bf16, compiled chunks")
            for rows in MEMORY_ROWS
        }
    )

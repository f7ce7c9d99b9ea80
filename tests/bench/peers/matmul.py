"""The yardstick: bfloat16 matrix products, as fast as this machine does them in any of several shapes.

A step takes each shape once; its result tells FLOP/s by shape. Outputs are made beforehand: no page is faulted in.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from tests.bench.peers.training import FF, VOCAB, B, D, S, Step, Variant, run

# Rows, inner, columns: of the model's own products, and such as suit a processor better.
SHAPES = ((B * S, D, FF), (B * S, FF, D), (B * S, D, VOCAB), (D, B * S, FF), (2048, 2048, 2048), (4096, 4096, 4096))
_LEAST_FLOPS = 60e9  # in a measurement: some 70 ms


def _start(folder: Path) -> Step:
    products = []
    for m, k, n in SHAPES:
        left, right = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
        products.append((left, right.T, torch.empty(m, n, dtype=torch.bfloat16)))
        torch.mm(left, right.T, out=products[-1][-1])

    def step() -> dict[str, float]:
        rates = {}
        for (m, k, n), (left, right, out) in zip(SHAPES, products, strict=True):
            flops = 2.0 * m * k * n
            repeats = max(1, round(_LEAST_FLOPS / flops))
            began = time.perf_counter()
            for _ in range(repeats):
                torch.mm(left, right, out=out)
            rates[f"{m}x{k}x{n}"] = repeats * flops / (time.perf_counter() - began)
        return rates

    return step


if __name__ == "__main__":
    run({"mm": Variant(_start, "torch.mm of bf16 into a given output")})

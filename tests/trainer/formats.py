"""What the tests of exports to other frameworks share: models of each generation with every odd feature, and the
environment that has those frameworks.

Well-conditioned weights, chosen once: matrices of unit gain (std fan_in^-1/2 times a gain), so that activations stay of
order one through the layers and float32 is good to 1e-6, and a gain on queries and keys that makes attention scores
reach their soft cap, as an embedding of std 1 makes logits reach theirs. Norm weights are random, so that a missing
1 + w shows.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conf.schema import Model
from trainer.model import Gemma, GemmaConfig, build_config

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-formats/bin/python"
SIZES = {1: "gemma_2b", 2: "gemma2_2b", 3: "gemma3_4b"}
LENGTH, WINDOW = 29, 10

needs_formats = pytest.mark.skipif(not PYTHON.exists(), reason="needs .venv-formats: make setup-formats")


def config_of(generation: int, pieces: int, **changes: int) -> GemmaConfig:
    """Odd layers, heads that do not fill the width, feed-forward of another width, a window shorter than rows."""
    layers, kv = {1: (3, 1), 2: (5, 2), 3: (8, 2)}[generation]
    shape = {"num_layers": layers, "d_model": 48, "d_ff": 80, "num_heads": 4, "num_kv_heads": kv, "head_dim": 16}
    window = {"window": WINDOW} if generation > 1 else {}
    return build_config(Model(size=SIZES[generation], **(shape | window | changes)), pieces)


def random_weights(config: GemmaConfig, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    with torch.no_grad():
        for name, parameter in Gemma(config).named_parameters():
            if parameter.ndim == 1:
                std = 0.3
            elif name == "embedding.weight":
                std = 1.0
            else:
                gain = 4.0 if name.endswith(("attention.q.weight", "attention.k.weight")) else 1.0
                std = gain * parameter.shape[1] ** -0.5
            weights[name] = torch.randn(parameter.shape, generator=generator) * std
    return weights


def tokens_of(pieces: int) -> Tensor:
    return torch.randint(4, pieces, (2, LENGTH), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_of(config: GemmaConfig, weights: dict[str, Tensor], tokens_BS: Tensor) -> Tensor:
    """Ours, [B, S, V] in float32."""
    model = Gemma(config)
    model.load_state_dict(weights)
    positions_BS = torch.arange(tokens_BS.shape[1]).expand(tokens_BS.shape[0], -1)
    return model(tokens_BS, torch.ones_like(tokens_BS), positions_BS)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def run(*arguments: str | Path, folder: Path | None = None, **environment: str) -> str:
    """What a Python of .venv-formats prints; it must end well."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [PYTHON, *arguments],
        cwd=folder,
        env=os.environ | quiet | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr

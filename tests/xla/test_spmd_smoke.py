"""The model on the TPU pair of packages: sharded over four virtual devices by SPMD, it computes what it computes alone.

Runs in .venv-tpu with PJRT_DEVICE=CPU and CPU_NUM_DEVICES=4 (make test-tpu). Shape suffixes: B rows, S positions.
"""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
import torch_xla
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr
from torch import Tensor

from trainer.model import Gemma, GemmaConfig, init_weights

pytestmark = pytest.mark.xla

DEVICES = 4
CONFIG = GemmaConfig(
    generation=3, vocab_size=256, num_layers=2, d_model=64, d_ff=128, num_heads=4, num_kv_heads=1, head_dim=16,
    pattern=("local", "global"), window=8, query_pre_attention=16, max_positions=64, qk_norm=True, post_norms=True,
    rope_base_global=1_000_000.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def mesh() -> xs.Mesh:
    assert os.environ.get("PJRT_DEVICE") == "CPU", "run make test-tpu: the runtime reads PJRT_DEVICE once, at the start"
    xr.use_spmd()
    assert xr.global_runtime_device_count() == DEVICES
    return xs.Mesh(np.arange(DEVICES), (DEVICES,), ("fsdp",))


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Two documents in each of four rows, the last positions padding."""
    generator = torch.Generator().manual_seed(0)
    tokens_BS = torch.randint(0, CONFIG.vocab_size, (4, 33), generator=generator)
    segments_BS = torch.ones(4, 32, dtype=torch.int32)
    segments_BS[:, 20:], segments_BS[:, 30:] = 2, 0
    positions_BS = torch.arange(32).repeat(4, 1)
    positions_BS[:, 20:] -= 20
    return {
        "tokens_BS": tokens_BS[:, :-1].contiguous(),
        "segments_BS": segments_BS,
        "positions_BS": positions_BS,
        "targets_BS": tokens_BS[:, 1:].contiguous(),
        "weights_BS": (segments_BS > 0).float(),
    }


def loss_and_gradients(model: Gemma, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = model(**batch) / batch["weights_BS"].sum()
    loss.backward()
    torch_xla.sync()  # one graph; reading results one by one would compile one for each
    return loss.detach().cpu(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def test_versions_belong_together() -> None:
    assert torch_xla.__version__ == "2.9.0"
    assert torch.__version__.startswith("2.9.1")


def test_sharded_model_equals_plain_torch(mesh: xs.Mesh, batch: dict[str, Tensor]) -> None:
    plain = Gemma(CONFIG)
    init_weights(plain, seed=0)
    want_loss, want = loss_and_gradients(plain, batch)

    device = torch_xla.device()
    model = Gemma(CONFIG)
    init_weights(model, seed=0)
    model.to(device)
    for parameter in model.parameters():
        largest = max(range(parameter.ndim), key=lambda axis: parameter.shape[axis])
        xs.mark_sharding(parameter, mesh, tuple("fsdp" if axis == largest else None for axis in range(parameter.ndim)))
    fed = {name: tensor.to(device) for name, tensor in batch.items()}
    for tensor in fed.values():
        xs.mark_sharding(tensor, mesh, ("fsdp", None))
    got_loss, got = loss_and_gradients(model, fed)

    # Sums in another order over four parts; float32 carries 1e-7 per operation.
    torch.testing.assert_close(got_loss, want_loss, rtol=1e-5, atol=0.0)
    assert got.keys() == want.keys() == dict(model.named_parameters()).keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())

    for name, parameter in model.named_parameters():
        spec = torch_xla._XLAC._get_xla_sharding_spec(parameter)
        parts = [int(n) for n in re.search(r"devices=\[([\d,]+)\]", spec).group(1).split(",")]
        assert sorted(parts)[-1] == DEVICES, f"{name}: {spec}"
        assert parts[max(range(parameter.ndim), key=lambda axis: parameter.shape[axis])] == DEVICES, f"{name}: {spec}"

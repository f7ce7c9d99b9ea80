"""Initial weights: the same on any number of processes, and a first loss of ln(vocabulary)."""

from __future__ import annotations

import hashlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from conf.schema import Model
from tests.trainer.conftest import environment
from tests.trainer.nursery import Nursery
from trainer.model import Gemma, build_config, init_weights


def small(**changes) -> Gemma:
    return Gemma(build_config(Model(num_layers=2, d_model=64, d_ff=96, head_dim=16, **changes), 300))


def digest(weights: dict[str, torch.Tensor]) -> str:
    bag = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        bag.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return bag.hexdigest()


def sharded() -> None:
    """What each process of a mesh does: FSDP over its share of rows, recomputation wrapped around blocks.

    Prints the digest of the whole weights, and a loss.
    """
    shape = tuple(int(n) for n in sys.argv[1].split("x"))
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replica", "fsdp"))
    with torch.device("meta"):
        model = small()
    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cpu")
    init_weights(model, seed=3)
    whole = {n.replace("_checkpoint_wrapped_module.", ""): p.full_tensor() for n, p in model.state_dict().items()}
    rows = torch.arange(24).view(2, 12)
    loss = model(rows, torch.ones_like(rows), rows % 12, rows + 1)
    loss.backward()
    if dist.get_rank() == 0:
        print(digest(whole), loss.item(), flush=True)
    dist.destroy_process_group()


@pytest.mark.parametrize("mesh", ["1x3", "2x2"])
def test_initial_weights_do_not_depend_on_processes(mesh: str, tmp_path: Path, nursery: Nursery) -> None:
    log = tmp_path / "said"
    code = nursery.run(
        folder=str(tmp_path),
        environment=environment(tmp_path),
        log=str(log),
        processes=math.prod(int(n) for n in mesh.split("x")),
        work="tests.trainer.test_model_init:sharded",
        arguments=[mesh],
    )
    assert code == 0, log.read_text()
    said = re.search(r"^([0-9a-f]{64}) (\S+)$", log.read_text(), re.MULTILINE)
    assert said is not None
    found, loss = said.groups()
    alone = small()
    init_weights(alone, seed=3)
    assert found == digest(dict(alone.state_dict()))
    rows = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = alone(rows, torch.ones_like(rows), rows % 12, rows + 1)
    assert float(loss) == pytest.approx(expected.item(), rel=2e-3)  # one is computed in bfloat16


def test_another_seed_gives_other_weights() -> None:
    first, again, other = small(), small(), small()
    init_weights(first, seed=3)
    init_weights(again, seed=3)
    init_weights(other, seed=4)
    assert digest(first.state_dict()) == digest(again.state_dict()) != digest(other.state_dict())


def test_every_parameter_is_filled() -> None:
    model = small()
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    init_weights(model, seed=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not torch.equal(model.blocks[0].attention.q.weight, model.blocks[1].attention.q.weight)


@pytest.mark.parametrize("vocab_size", [4096, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_loss_is_that_of_a_uniform_guess(vocab_size: int, dtype: torch.dtype) -> None:
    model = Gemma(build_config(Model(), vocab_size))
    init_weights(model, seed=0)
    rows = torch.randint(4, vocab_size, (2, 128), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(128).expand(2, -1)
    with torch.no_grad():
        model = model.to(dtype)
        loss = model(rows, torch.ones_like(rows), positions, rows.roll(-1, 1)) / rows.numel()
        own = model(rows, torch.ones_like(rows), positions).gather(-1, rows[..., None])
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.05)
    assert own.max() <= 4 * 1.1


@pytest.mark.parametrize("size", ["gemma_2b", "gemma2_2b", "gemma3_1b"])
def test_the_first_loss_of_each_generation(size: str) -> None:
    config = build_config(
        Model(
            size=size, num_layers=6, d_model=256, d_ff=512, num_heads=4, num_kv_heads=1, head_dim=64, vocab_size=4096
        ),
        4096,
    )
    model = Gemma(config)
    init_weights(model, seed=1)
    rows = torch.randint(4, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    loss = model(rows, torch.ones_like(rows), torch.arange(64).expand(2, -1), rows.roll(-1, 1)) / rows.numel()
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4096), rel=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

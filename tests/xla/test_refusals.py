"""Promises of the xla backend before it starts: what does not fit is refused in words, imports do nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch_xla

from conf.exits import ConfigError
from conf.schema import Job
from tests.trainer.conftest import Lab
from tests.trainer.twins import config_of
from trainer.backend.xla import Xla

pytestmark = pytest.mark.xla


def job_of(*, replica: int = 1, fsdp: int = 1, tensor: int = 1, change: Callable[[Job], None] | None = None) -> Job:
    job = Job()
    job.mesh.replica, job.mesh.fsdp, job.mesh.tensor, job.micro_batch = replica, fsdp, tensor, 1
    job.data.sequence_length, job.tokens_per_step = 32, 32 * 8
    if change is not None:
        change(job)
    return job


def optimizer(name: str) -> Callable[[Job], None]:
    return lambda job: setattr(job.optim, "name", name)


def splash(job: Job) -> None:
    job.attention = "splash"


def context(job: Job) -> None:
    job.mesh.context = 2


def test_versions_belong_together() -> None:
    assert torch_xla.__version__ == "2.9.0"
    assert torch.__version__.startswith("2.9.1")


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (job_of(fsdp=3), r"mesh\.replica=1 x mesh\.fsdp=3 does not match the number of chips=4"),
        (job_of(fsdp=-1, tensor=3), r"mesh\.tensor=3 does not match the number of chips=4: set mesh\.fsdp=-1"),
        (job_of(replica=2, fsdp=4), r"does not match the number of chips=4.*product is 4"),
        (
            job_of(tensor=4, change=lambda job: setattr(job.data, "sequence_length", 30)),
            r"data\.sequence_length=30 is not a multiple of mesh\.context=1 x mesh\.tensor=4",
        ),
        (job_of(fsdp=4, change=lambda job: setattr(job, "micro_batch", 3)), r"micro_batch=3"),
        (job_of(fsdp=2, change=context), r"mesh\.context=2 does not run on XLA: use mesh\.tensor for long rows"),
    ],
)
def test_a_mesh_that_does_not_fit_the_chips_is_refused(job: Job, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Xla(job)


@pytest.mark.parametrize(
    ("job", "model", "said"),
    [
        (job_of(tensor=4), {"num_heads": 6, "num_kv_heads": 1}, "model.num_heads=6 is not a multiple of mesh.tensor=4"),
        (job_of(tensor=4), {"num_kv_heads": 1, "d_ff": 42}, "model.d_ff=42 is not a multiple of mesh.tensor=4"),
        (job_of(tensor=4), {"num_kv_heads": 1, "vocab_size": 258}, "vocabulary of 258 words is not a multiple of"),
        (job_of(fsdp=4, change=optimizer("muon")), {}, "optim.name=muon does not run on XLA: use optim.name=adamw"),
        (job_of(fsdp=4, change=splash), {}, "rows of 32 tokens are no multiple of 128"),
    ],
)
def test_a_model_that_the_chips_cannot_share_is_refused(job: Job, model: dict[str, int], said: str) -> None:
    (found,) = Xla(job).problems(config_of(1, **model))
    assert said in found


def test_all_problems_of_a_model_come_at_once() -> None:
    job = job_of(tensor=4, change=optimizer("muon"))
    config = config_of(1, num_heads=6, d_ff=42, vocab_size=258)
    assert len(Xla(job).problems(config)) == 4


def test_a_model_that_fits_has_no_problem() -> None:
    for axes in ({"fsdp": 4}, {"tensor": 4}, {"fsdp": 2, "tensor": 2}, {"replica": 4}, {"fsdp": -1}):
        assert Xla(job_of(**axes)).problems(config_of(1)) == []


def test_the_command_ends_with_78_and_says_why(shared_lab: Lab) -> None:
    """Both refusals of a mesh and of a model, of which the run directory keeps nothing."""
    heads = shared_lab.start("heads", "backend=xla", "mesh.tensor=4").wait()
    assert heads.code == 78
    assert "model.num_heads=2 is not a multiple of mesh.tensor=4" in heads.said
    chips = shared_lab.start("chips", "backend=xla", "mesh.fsdp=3").wait()
    assert chips.code == 78
    assert "mesh.fsdp=3 does not match the number of chips=4" in chips.said
    assert not (chips.folder / "checkpoints").exists()


STATE = """
import importlib, json, logging, signal, sys, threading, warnings
import torch
import torch_xla
import torch_xla._internal.pjrt
from torch_xla import _XLAC

handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
root, threads = len(logging.root.handlers), threading.active_count()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps({
    "runtime": _XLAC._xla_runtime_is_initialized(),
    "spmd": "XLA_USE_SPMD" in __import__("os").environ,
    "process group": torch.distributed.is_initialized(),
    "root handlers": len(logging.root.handlers) - root,
    "threads": threading.active_count() - threads,
    "signals": [number for number, handler in handlers.items() if signal.getsignal(number) is not handler],
    "default dtype": str(torch.get_default_dtype()),
    "jax": "jax" in sys.modules,
}))
"""


def test_imports_are_inert(root: Path, shared_lab: Lab, tmp_path: Path) -> None:
    """Importing every module of the backend asks for no device and sets nothing up."""
    folder = root / "trainer" / "backend" / "xla"
    modules = [f"trainer.backend.xla.{file.stem}" for file in sorted(folder.glob("*.py")) if file.stem != "__init__"]
    assert len(modules) >= 14
    environment = shared_lab.environment | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", STATE, json.dumps(modules)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "runtime": False,
        "spmd": False,
        "process group": False,
        "root handlers": 0,
        "threads": 0,
        "signals": [],
        "default dtype": "torch.float32",
        "jax": False,
    }
    assert list(tmp_path.iterdir()) == []

"""What tests of the xla backend share. They run in .venv-tpu with four virtual devices: make test-tpu."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.trainer.conftest import Corpus, Lab, corpus, environment

__all__ = ["corpus"]

DEVICES = 4
# What tests compile in this process runs for milliseconds: LLVM would take longer to make it fast. Runs of the trainer,
# in processes of their own, are compiled as for anyone.
QUICK = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), QUICK)))


@pytest.fixture(scope="session", autouse=True)
def virtual_devices() -> None:
    found = os.environ.get("PJRT_DEVICE"), os.environ.get("CPU_NUM_DEVICES")
    assert found == ("CPU", str(DEVICES)), "run make test-tpu: the runtime reads these once, at the start"


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("shared")
    dropped = ("XLA_FLAGS", "XLA_USE_SPMD")  # this process's own
    made = Lab(folder, corpus, {name: value for name, value in environment(folder).items() if name not in dropped})
    yield made
    made.close()

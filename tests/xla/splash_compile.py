"""What libtpu's compiler makes of the splash attention programs for a v5e that is not attached; prints JSON.

A process of its own: libtpu reads its environment once. Of each case and pass: bytes of the module, temporaries of the
chip in MiB as XLA counts them, kernels, and the shape of the table that says which blocks of keys are visited.
"""

from __future__ import annotations

import json
import os
import re

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # other processes of this machine may be compiling, too
)

import numpy as np
import torch
from jax._src import compiler
from jax._src.lib import xla_client
from jax.experimental import topologies
from jaxlib._jax import DeviceList

from trainer.backend.splash import Shapes, program

bfloat16 = torch.bfloat16
CASES = {
    "gemma_2b": Shapes(4, 2048, 8, 1, 256, bfloat16, None, None, 256**-0.5),
    "gemma2_2b local": Shapes(1, 8192, 8, 4, 256, bfloat16, 4096, 50.0, 256**-0.5),
    "gemma2_2b global": Shapes(1, 8192, 8, 4, 256, bfloat16, None, 50.0, 256**-0.5),
    "gemma3_27b local": Shapes(1, 8192, 32, 16, 128, bfloat16, 1024, None, 168**-0.5),
    "float32": Shapes(1, 1152, 2, 1, 256, torch.float32, 1024, 50.0, 256**-0.5),
}


def compiled(module: bytes, device: object) -> int:
    """Bytes of temporaries."""
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(module))
    options = compiler.get_compile_options(1, 1, device_assignment=np.zeros((1, 1), dtype=int))
    program = text.encode() if isinstance(text, str) else text
    executable = device.client.compile(program, DeviceList((device,)), options)
    return executable.get_compiled_memory_stats().temp_size_in_bytes


if __name__ == "__main__":
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    for name, shapes in CASES.items():
        for backward in (False, True):
            module = program(shapes, backward)
            hlo = xla_client.XlaComputation(module).as_hlo_text()
            row = {
                "case": name,
                "backward": backward,
                "module_bytes": len(module),
                "kernels": hlo.count('custom_call_target="tpu_custom_call"'),
                "visited": [
                    int(n) for n in re.search(r"custom-call\(.*?layout_constraints={s8\[([\d,]+)]", hlo)[1].split(",")
                ],
                "temporaries_mib": round(compiled(module, device) / 2**20, 1),
            }
            print(json.dumps(row), flush=True)

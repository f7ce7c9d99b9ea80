"""What a function would have the chips compute, as text: for chips that are not attached, and without any numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor

from trainer.backend.xla.program import Program

_C = torch_xla._XLAC


@dataclass(frozen=True)
class Lowered:
    """A program, and of which outputs which inputs are given up to them: what the function changes in place."""

    hlo: str
    donated: dict[int, int]


def nothing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of the whole mesh without content."""
    placeholder: Tensor = xb.create_placeholder_tensor(shape, dtype)
    return placeholder


def lower(function: Callable[..., Any], kept: list[Tensor], *arguments: Any) -> Lowered:
    """The program of a call, which may change the tensors `kept` beside its results."""
    before = [tensor.detach().clone() for tensor in kept]
    _, after = Program(function, lambda: kept).record(*arguments)
    context = _C.lowering.LoweringContext("Step")
    context.set_name_string("step")
    context.build(after)
    numbers = [context.tensor_parameter_id(tensor) for tensor in before]
    return Lowered(_text(context.hlo()), {output: number for output, number in enumerate(numbers) if number >= 0})


def _text(module: bytes) -> str:
    from jax._src.lib import xla_client  # reads the module; no device of JAX is touched

    options = xla_client._xla.HloPrintOptions()
    options.print_large_constants = True
    options.print_backend_config = True  # the kernels of splash attention
    text: str = xla_client.XlaComputation(module).get_hlo_module().to_string(options)
    return text

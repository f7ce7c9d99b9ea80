"""Operations that torch has no word for, written in StableHLO and put into a torch_xla program."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor

_C = torch_xla._XLAC
NUMBERS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64", torch.bool: "i1"}


def call(name: str, operation: str, inputs: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What an operation makes of its inputs, %0, %1, ...; `operation` says it without its types."""
    types = [tensor_type(t.shape, t.dtype) for t in inputs]
    arguments = ", ".join(f"%{n}: {one}" for n, one in enumerate(types))
    result = tensor_type(shape, dtype)
    text = (
        f"module @{name} {{ func.func public @main({arguments}) -> {result} {{ "
        f"%y = {operation} : ({', '.join(types)}) -> {result} return %y : {result} }} }}"
    )
    made: Tensor = _C._xla_user_computation(f"xla::{name}", list(inputs), _computation(text))[0]
    return made


def tensor_type(shape: Sequence[int], dtype: torch.dtype) -> str:
    """Such as tensor<2x3xf32>."""
    return f"tensor<{''.join(f'{size}x' for size in shape)}{NUMBERS[dtype]}>"


@functools.lru_cache(4096)
def _computation(text: str) -> object:
    from jax._src.lib import xla_client  # reads the dialect; no device of JAX is touched

    parsed = xla_client._xla.mlir.mlir_module_to_xla_computation(text, use_tuple_args=False, return_tuple=False)
    return xb.computation_from_module_proto("stablehlo", parsed.as_serialized_hlo_module_proto())


def product(a: Tensor, b: Tensor, contract_a: int, contract_b: int) -> Tensor:
    """The float32 product of two matrices over one dimension of each, whatever their dtype."""
    operation = (
        f'"stablehlo.dot_general"(%0, %1) <{{dot_dimension_numbers = #stablehlo.dot<lhs_contracting_dimensions = '
        f"[{contract_a}], rhs_contracting_dimensions = [{contract_b}]>}}>"
    )
    return call("product", operation, [a, b], (a.shape[1 - contract_a], b.shape[1 - contract_b]), torch.float32)


def slice_at(x: Tensor, start: Tensor, dim: int, size: int) -> Tensor:
    """`size` places of a dimension, from one on that is a number on the device."""
    zero = torch.zeros((), dtype=start.dtype, device=start.device)
    starts = [start if at == dim else zero for at in range(x.ndim)]
    sizes = [size if at == dim else whole for at, whole in enumerate(x.shape)]
    names = ", ".join(f"%{n}" for n in range(1 + x.ndim))
    operation = f'"stablehlo.dynamic_slice"({names}) <{{slice_sizes = array<i64: {", ".join(map(str, sizes))}>}}>'
    return call("slice_at", operation, [x, *starts], sizes, x.dtype)


def update_at(x: Tensor, part: Tensor, start: Tensor, dim: int) -> Tensor:
    """x with a part in place of what is there along a dimension, from a place on that is a number on the device."""
    zero = torch.zeros((), dtype=start.dtype, device=start.device)
    starts = [start if at == dim else zero for at in range(x.ndim)]
    names = ", ".join(f"%{n}" for n in range(2 + x.ndim))
    return call("update_at", f'"stablehlo.dynamic_update_slice"({names})', [x, part, *starts], x.shape, x.dtype)

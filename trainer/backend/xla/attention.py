"""Attention on a chip: splash on TPUs, the plain formula elsewhere."""

from __future__ import annotations

import functools

import torch_xla
import torch_xla.core.xla_builder as xb
from torch import Tensor

from trainer.backend.splash import splash
from trainer.model.attention import Attend, Rows


def splash_kernel(segments_BS: Tensor, window: int | None, rows: Rows) -> Attend:
    """A `trainer.model.attention.Kernel`, over whole rows."""

    def attend(q_BSNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, cap: float | None, scale: float) -> Tensor:
        out_BSNH, _ = splash(q_BSNH, k_BSKH, v_BSKH, segments_BS, window, cap, scale)
        return out_BSNH

    return attend


def run_program(name: str, module: bytes, inputs: list[Tensor]) -> list[Tensor]:
    """A `trainer.backend.splash.Run`."""
    return list(torch_xla._XLAC._xla_user_computation(f"xla::{name}", inputs, _computation(module)))


@functools.lru_cache(64)
def _computation(module: bytes) -> object:
    return xb.computation_from_module_proto("splash", module)

"""Recomputation in the loop of layers: what a layer's forward pass keeps, its backward pass takes up again.

`selective` keeps results of matrix products and of splash attention; `block` keeps none. `none` is as `selective`: of
the rest XLA fuses what is cheap into what needs it, and would rather compute than read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trainer.backend.splash import splash, splash_backward

_SPLASH = splash._opoverload


class Keeping(TorchFunctionMode):
    """Collects in `results` what the policy keeps."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self._keeps = policy != "block"
        self.results: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if self._keeps and function in _RECALL:
            self.results += result if isinstance(result, tuple) else [result]
        return result


class Recalling(TorchFunctionMode):
    """Gives those results back, in their order, instead of computing them again; they have gradients as if it had."""

    def __init__(self, results: Sequence[Tensor]) -> None:
        super().__init__()
        self._keeps, self._results = bool(results), iter(results)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._keeps and function in _RECALL:
            return _RECALL[function](self._results, *args)
        return function(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, result: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return result.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, -2).T @ x.flatten(0, -2), None


class _Splash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Tensor, out: Tensor, lse: Tensor, *numbers: Any
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, segments, out, lse)
        ctx.numbers = numbers
        return out.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = splash_backward(grad, *ctx.saved_tensors, *ctx.numbers)
        return *grads, None, None, None, *(None for _ in ctx.numbers)


def _recall_linear(results: Iterator[Tensor], x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
    recalled: Tensor = _Linear.apply(x, weight, next(results))
    return recalled


def _recall_splash(results: Iterator[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
    out, lse = next(results), next(results)
    return _Splash.apply(*args[:4], out, lse, *args[4:]), lse


_RECALL: dict[Any, Callable[..., Any]] = {F.linear: _recall_linear, _SPLASH: _recall_splash}

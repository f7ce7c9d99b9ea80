"""Optimizer and schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from conf import schema
from trainer.model import Gemma
from trainer.model.gemma import bare_name

MOMENTS = ("exp_avg", "exp_avg_sq")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay holds for a parameter: for matrices of blocks; norms and the embedding have none.

    Norms are stored as the difference from 1, where decay would mean something else. The embedding is tied to the
    output and scaled by the root of the width; decay would fight that scale.
    """
    return parameter.ndim == 2 and bare_name(name) != "embedding.weight"


def build_optimizer(model: Gemma, optim: schema.Optim) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), with weight decay for what `decays`."""
    decayed: list[torch.nn.Parameter] = []
    exempt: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if decays(name, parameter) else exempt).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": weight_decay}
            for parameters, weight_decay in ((decayed, optim.weight_decay), (exempt, 0.0))
            for group in _by_mesh(parameters)
        ],
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    # As AdamW would on its first step; made now so that a checkpoint can be loaded into them.
    for parameter in [*decayed, *exempt]:
        moments = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return optimizer


def _by_mesh(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters in groups whose shards lie on one mesh: a fused update takes no others together."""
    groups: dict[object, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return list(groups.values())


def skip_where(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Make the coming update none at all if `skipped`, a float32 scalar on the device, is 1 and not 0.

    A fused AdamW looks there for what torch's scaling of gradients has found, and leaves parameters, moments and its
    own count of updates alone.
    """
    optimizer.found_inf = skipped  # type: ignore[attr-defined]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def lr_at(optim: schema.Optim, step: int, steps: int) -> float:
    """The learning rate of update `step` (0, 1, ... steps - 1): a pure function, so a resume needs no state.

    Linear warm-up ends at `peak_lr` on update `warmup_steps`. Then: `cosine` falls to `final_lr_ratio * peak_lr` on the
    last update (arXiv 1608.03983); `wsd` stays and falls linearly over the last `decay_steps` (arXiv 2404.06395);
    `constant` stays.
    """
    if step < optim.warmup_steps:
        return optim.peak_lr * (step + 1) / (optim.warmup_steps + 1)
    final = optim.peak_lr * optim.final_lr_ratio
    if optim.schedule == "constant":
        return optim.peak_lr
    if optim.schedule == "wsd":
        decay = max(1, steps // 10) if optim.decay_steps is None else optim.decay_steps
        done = max(0, step + 1 - (steps - decay)) / decay if decay else 0.0
        return optim.peak_lr + (final - optim.peak_lr) * min(1.0, done)
    done = (step - optim.warmup_steps) / max(1, steps - 1 - optim.warmup_steps)
    return final + (optim.peak_lr - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

"""Optimizer and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from conf import schema
from trainer.model import Gemma
from trainer.model.gemma import bare_name
from trainer.optim.muon import Muon


def decays(name: str) -> bool:
    """Whether weight decay holds for a parameter: for matrices of blocks; norms and the embedding have none.

    Norms are stored as the difference from 1, where decay would mean something else. The embedding is tied to the
    output and scaled by the root of the width; decay would fight that scale.
    """
    return bare_name(name) != "embedding.weight" and not name.endswith("norm.weight")


Groups = Sequence[tuple[list[torch.nn.Parameter], float]]  # parameters and their weight decay
AdamW = Callable[[Groups, schema.Optim], torch.optim.Optimizer]


def build_optimizer(
    model: Gemma, optim: schema.Optim, precision: str = "fp32", adamw: AdamW | None = None
) -> torch.optim.Optimizer:
    """The optimizer that `optim.name` asks for, with weight decay for what `decays`.

    adamw  AdamW (Loshchilov and Hutter, arXiv 1711.05101)
    muon   Muon for what `decays`, which are the hidden matrices, and AdamW for norms and the embedding

    `adamw` makes AdamW (default: `fused_adamw`). Matrix products of Muon are computed in `precision`, as those of the
    model: in bf16 they are cheap and good enough (Jordan's post), in fp32 equal on all meshes but for rounding of fp32.
    """
    adamw = adamw or fused_adamw
    decayed: list[torch.nn.Parameter] = []
    exempt: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if decays(name) else exempt).append(parameter)
    if optim.name == "adamw":
        return adamw([(decayed, optim.weight_decay), (exempt, 0.0)], optim)
    return Muon(
        decayed,
        adamw([(exempt, 0.0)], optim),
        lr=optim.peak_lr,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )


def fused_adamw(groups: Groups, optim: schema.Optim) -> torch.optim.Optimizer:
    """torch's own, on parameters by their weight decay."""
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": weight_decay}
            for parameters, weight_decay in groups
            for group in _by_mesh(parameters)
        ],
        lr=optim.peak_lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        fused=True,
    )
    # As AdamW would on its first step; made now so that a checkpoint can be loaded into them.
    for parameters, _ in groups:
        for parameter in parameters:
            moments = {moment: torch.zeros_like(parameter, requires_grad=False) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return optimizer


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer keeps of a parameter, of its shape: all of its state but the count of updates."""
    return {name: moment for name, moment in optimizer.state[parameter].items() if name != "step"}


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Tell the optimizer how many updates there were; AdamW counts them for each parameter, each has had every one."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(updates)


def _by_mesh(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Parameters in groups whose shards lie on one mesh: a fused update takes no others together."""
    groups: dict[object, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return list(groups.values())


def skip_where(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Make the coming update none at all if `skipped`, a float32 scalar on the device, is 1 and not 0.

    A fused AdamW looks there for what torch's scaling of gradients has found, and leaves parameters, moments and its
    own count of updates alone; Muon does as it does.
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

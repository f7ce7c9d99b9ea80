"""Gemma 1, 2 and 3 for text: one model whose features a `GemmaConfig` switches.

Knows nothing of devices, sharding, precision policies or configuration files: it computes in the dtype of the weights
it meets, and whoever trains it shards `blocks` and wraps them.

Shape suffixes: B rows, S positions, T keys, D width, V words, R = B * S, P rotated pairs.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn import functional as F

from trainer.model.attention import Attention, Kernel, Rows, Surroundings, WholeRows
from trainer.model.config import GemmaConfig, Kind
from trainer.model.kernels import sdpa
from trainer.model.layers import FeedForward, RMSNorm, rope_tables, soft_cap
from trainer.model.loss import Loss, token_loss
from trainer.sharded import Parted


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy of the stream; Gemma 2 and 3 normalise the result too."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.attention_post_norm = RMSNorm(config.d_model, config.norm_eps) if config.post_norms else nn.Identity()
        self.feed_forward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.feed_forward_post_norm = RMSNorm(config.d_model, config.norm_eps) if config.post_norms else nn.Identity()

    def forward(self, x_BSD: Tensor, around: Surroundings) -> Tensor:
        x_BSD = x_BSD + self.attention_post_norm(self.attention(self.attention_norm(x_BSD), around))
        return x_BSD + self.feed_forward_post_norm(self.feed_forward(self.feed_forward_norm(x_BSD)))


Around = Callable[[Kind, Tensor, Tensor], Surroundings]  # (kind, segments_BS, positions_BS): of all layers of a kind


class Blocks(nn.ModuleList):
    """All blocks, one after the other: the units to shard and to recompute."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__(Block(config) for _ in range(config.num_layers))
        self._kinds = config.layer_kinds

    def forward(self, x_BSD: Tensor, segments_BS: Tensor, positions_BS: Tensor, around: Around) -> Tensor:
        kinds = dict.fromkeys(self._kinds)  # not a set: processes that gather in it must go in one order
        shared = {kind: around(kind, segments_BS, positions_BS) for kind in kinds}
        for block, kind in zip(self, self._kinds, strict=True):
            x_BSD = block(x_BSD, shared[kind])
        return x_BSD


class Gemma(nn.Module):
    """The whole model. Weights are uninitialised until `init_weights` or a checkpoint fills them.

    `rows` says how positions lie over processes, `kernel` and `loss` what computes attention and the loss.
    """

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = Blocks(config)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.rows: Rows = WholeRows()
        self.kernel: Kernel = sdpa
        self.loss: Loss = token_loss

    def forward(
        self,
        tokens_BS: Tensor,
        segments_BS: Tensor,
        positions_BS: Tensor,
        targets_BS: Tensor | None = None,
        weights_BS: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Logits [B, S, V] in float32, or with targets the summed loss, a float32 scalar.

        Args:
            tokens_BS: integer inputs.
            segments_BS: integers that number the documents of a row; a token sees only earlier tokens of its own.
            positions_BS: integers, distance from the start of the document, for RoPE.
            targets_BS: int64, the token that each position should predict.
            weights_BS: factor on the loss of each position; None: 1.
            z_loss: weight of log(Z)^2 beside the negative log-likelihood.

        The loss is computed here and not on returned logits because they would not fit, and because the output shares
        the embedding's weight, which a sharded model holds whole only inside its forward pass.
        """
        x_BSD = self.hidden(tokens_BS, segments_BS, positions_BS)
        if targets_BS is None:
            return self.logits(x_BSD)
        weights_BS = torch.ones_like(targets_BS, dtype=torch.float32) if weights_BS is None else weights_BS
        return self.loss(x_BSD, self.embedding.weight, targets_BS, weights_BS, self.config.final_soft_cap, z_loss)

    def hidden(self, tokens_BS: Tensor, segments_BS: Tensor, positions_BS: Tensor) -> Tensor:
        """The normalised stream behind the last block, [B, S, D], of which `logits` are a linear map."""
        x_BSD = self.embedding(tokens_BS)
        x_BSD = x_BSD * _rounded(math.sqrt(self.config.d_model), x_BSD.dtype)
        return self.final_norm(self.blocks(x_BSD, segments_BS, positions_BS, self._surroundings))

    def logits(self, x_BSD: Tensor) -> Tensor:
        """[B, S, V] float32, soft-capped where the configuration says so."""
        logits_BSV = F.linear(x_BSD, self.embedding.weight).float()
        cap = self.config.final_soft_cap
        return logits_BSV if cap is None else soft_cap(logits_BSV, cap)

    def _surroundings(self, kind: Kind, segments_BS: Tensor, positions_BS: Tensor) -> Surroundings:
        config = self.config
        local = kind == "local"
        cos_BS1P, sin_BS1P = rope_tables(
            positions_BS,
            config.head_dim,
            config.rope_base_local if local else config.rope_base_global,
            1.0 if local else config.rope_scale_global,
        )
        attend = self.kernel(segments_BS, config.window if local else None, self.rows)
        return Surroundings(self.rows, attend, cos_BS1P, sin_BS1P)


@functools.cache
def _rounded(value: float, dtype: torch.dtype) -> float:
    """`value` as `dtype` holds it: the released models saw the root of 3072 as bfloat16's 55.5, not 55.43."""
    return torch.tensor(value, dtype=dtype, device="cpu").item()


@torch.no_grad()
def init_weights(model: Gemma, seed: int, weights: Mapping[str, Tensor | Parted] | None = None) -> None:
    """Fills every parameter in place; the same values for the same seed on any number of processes and any mesh.

    norms                         0: the norm multiplies by 1 + w
    embedding                     normal, std min(0.02, 4 / d_model): a token's own logit starts at 4 at most, so the
                                  first loss is ln(vocabulary)
    other matrices                normal, std fan_in^-1/2: unit variance in, unit variance out
    attention.o, feed_forward.down  the same over (2 num_layers)^1/2 where no norm follows (Gemma 1), as in GPT-2: the
                                  variance of the stream stays of order 1

    Each tensor is drawn whole, in float32 on the host, from a generator of its own seeded by `seed` and its name, and
    every process keeps its part; host memory for the largest tensor is needed on each process for a moment. `weights`
    are those to fill, by name: by default those of the model.
    """
    named = {bare_name(name): parameter for name, parameter in model.named_parameters()}
    for name, parameter in (named if weights is None else weights).items():
        std = _init_std(model.config, name, parameter)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))
        whole = torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
        if std:
            whole.normal_(0.0, std, generator=generator)
        if isinstance(parameter, Parted):
            parameter.fill(functools.partial(_copy_part, whole))
        elif isinstance(parameter, DTensor):
            _shape, offset = compute_local_shape_and_global_offset(
                parameter.shape, parameter.device_mesh, parameter.placements
            )
            _copy_part(whole, parameter.to_local(), list(offset))
        else:
            parameter.copy_(whole)


def _copy_part(whole: Tensor, part: Tensor, offset: list[int]) -> None:
    part.copy_(whole[tuple(slice(first, first + size) for first, size in zip(offset, part.shape, strict=True))])


def bare_name(name: str) -> str:
    """The name without what wrappers for recomputation and compilation insert."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _init_std(config: GemmaConfig, name: str, parameter: Tensor | Parted) -> float:
    if parameter.ndim == 1:
        return 0.0
    if name == "embedding.weight":
        return min(0.02, 4 / config.d_model)
    std = parameter.shape[1] ** -0.5
    if not config.post_norms and name.endswith(("attention.o.weight", "feed_forward.down.weight")):
        std /= math.sqrt(2 * config.num_layers)
    return std

"""Both ends of a Gemma on a mesh, the embedding and the loss: it is gathered once for both, and logits never exist.

The loss takes the words some at a time, for all of a chip's tokens: once to find log Z of every token, and once more to
form the gradients (as Cut Cross-Entropy does, arXiv 2411.09009). A chunk has as many words of each shard of the
embedding, so that its gradient, once summed, lies where it belongs.

Shape suffixes: B rows, S positions of a row that a chip holds, R = B * S tokens whose logits it computes, D width,
V words of its part of the vocabulary with what fills the last shard, W words of a chunk, F chips that share them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.backend.xla.collectives import all_gather, all_reduce, gathered, scattered
from trainer.backend.xla.scan import scan
from trainer.backend.xla.sharding import Placement
from trainer.backend.xla.stablehlo import product, slice_at
from trainer.backend.xla.weights import Weights

LOGITS = 2**26  # of a chunk, at most: 0.25 GiB in float32
GRADIENT = 2**27  # numbers of the embedding's gradient that are summed over positions at a time


class SharedEmbedding(nn.Module):
    """The embedding as chips share it; `weight` is a chip's shard, and the whole is there from lookup to loss."""

    def __init__(self, placement: Placement, weights: Weights) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(placement.stored, device="meta"))
        self.placement, self.weights = placement, weights
        self.first_word: Tensor | None = None  # of the chip's part of the vocabulary, an int32 scalar
        self.whole_VD: Tensor | None = None

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """[B, S, D] of a chip's positions, from the tokens of whole rows."""
        mesh, dim = self.weights.mesh, self.placement.cut.fsdp
        assert dim == 0
        cast = self.weight.detach().to(self.weights.compute)
        self.whole_VD = self.weights.whole(cast, 0)
        tokens_BS = tokens_BS.to(torch.int32)
        if mesh.axes["tensor"] == 1:
            x_BSD: Tensor = _Lookup.apply(tokens_BS, self.whole_VD, self.weight, self)
            return x_BSD
        assert self.first_word is not None
        own_BS = tokens_BS - self.first_word
        mine_BS = (own_BS >= 0) & (own_BS < self.placement.part[0])
        x_BSD = _Lookup.apply(own_BS.clamp(0, self.placement.part[0] - 1), self.whole_VD, self.weight, self)
        return scattered(x_BSD * mine_BS[:, :, None].to(x_BSD.dtype), 1, mesh.groups(("tensor",)))

    def summed(self, gradient_VD: Tensor) -> Tensor:
        """A chip's shard of the gradient of some words, as many of each shard, from what each chip has of them."""
        return self.weights.scatter(gradient_VD.to(self.weights.reduce), 0)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, words_BS: Tensor, whole_VD: Tensor, _shard: Tensor, embedding: SharedEmbedding) -> Tensor:
        ctx.save_for_backward(words_BS)
        ctx.embedding, ctx.words = embedding, whole_VD.shape[0]
        return whole_VD[words_BS.flatten()].view(*words_BS.shape, -1)

    @staticmethod
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor | None, ...]:
        (words_BS,) = ctx.saved_tensors
        V, D = ctx.words, grad_BSD.shape[2]
        parts = next(n for n in range(1, D + 1) if (D % n == 0 and V * (D // n) <= GRADIENT) or n == D)
        grad_PRD = grad_BSD.flatten(0, 1).unflatten(1, (parts, D // parts)).transpose(0, 1)

        def some(
            _: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            ((grad_RD,),), (words_R,) = slices, constants
            sum_VD = torch.zeros(V, D // parts, device=grad_RD.device).index_add(0, words_R, grad_RD.float())
            return [], [[ctx.embedding.summed(sum_VD)]]

        _, (shard_PVD,) = scan(some, [], [grad_PRD], [words_BS.flatten()], 1, parts)
        return None, None, shard_PVD.transpose(0, 1).flatten(1), None


def shared_loss(
    embedding: SharedEmbedding,
    x_BSD: Tensor,
    targets_BS: Tensor,
    weights_BS: Tensor,
    cap: float | None,
    z_loss: float,
) -> Tensor:
    """`trainer.model.loss.token_loss` summed over all chips: x of a chip's positions, the others of whole rows."""
    mesh = embedding.weights.mesh
    x_BSD = gathered(x_BSD, 1, mesh.groups(("tensor",)))
    loss: Tensor = _Loss.apply(
        x_BSD.flatten(0, 1),
        embedding.weight,
        embedding,
        targets_BS.flatten().to(torch.int32),
        weights_BS.flatten(),
        cap,
        z_loss,
    )
    embedding.whole_VD = None
    return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        _shard: Tensor,
        embedding: SharedEmbedding,
        targets_R: Tensor,
        weights_R: Tensor,
        cap: float | None,
        z_loss: float,
    ) -> Tensor:
        placement, mesh = embedding.placement, embedding.weights.mesh
        R, D = x_RD.shape
        F, rows = placement.fsdp, placement.shard[0]
        chunk_rows = _chunk_rows(rows, R * F)
        W, chunks = F * chunk_rows, rows // chunk_rows
        assert embedding.whole_VD is not None
        whole_FVD = embedding.whole_VD.view(F, rows, D)
        device = x_RD.device
        first_word = torch.zeros((), dtype=torch.int32, device=device)
        if embedding.first_word is not None:
            first_word = embedding.first_word
        row_W = torch.arange(W, dtype=torch.int32, device=device)
        row_W = row_W // chunk_rows * rows + row_W % chunk_rows  # within the part, of the first chunk

        def logits(start: Tensor, constants: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
            """Of a chunk: values [R, W], words [W], the tanh that bent the values, and the embedding's rows."""
            x, whole, row, first = constants[:4]
            own_WD = slice_at(whole, start, 1, chunk_rows).flatten(0, 1)
            values, tanh = product(x, own_WD, 1, 1), None
            if cap is not None:
                tanh = (values / cap).tanh()
                values = tanh * cap
            own = row + start
            word = own + first
            if rows * F > placement.part[0]:
                filling = own >= placement.part[0]
                values = values.masked_fill(filling, -torch.inf)
                word = word.masked_fill(filling, -1)  # else it would be one of the next part of the vocabulary
            return values, word, tanh, own_WD

        def statistics(
            carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            (largest, total, target), ((start,),) = carry, slices
            values, word, _, _ = logits(start, constants)
            higher = largest.maximum(values.amax(1))
            total = total * (largest - higher).exp() + (values - higher[:, None]).exp().sum(1)
            is_target = word == constants[4][:, None]
            return [higher, total, target + torch.where(is_target, values, 0.0).sum(1)], [[]]

        constants = [x_RD, whole_FVD, row_W, first_word, targets_R]
        starts = torch.arange(0, rows, chunk_rows, dtype=torch.int32, device=device)
        nothing_R = torch.zeros(R, device=device)
        begin = [nothing_R - torch.inf, nothing_R, nothing_R]
        (largest_R, total_R, target_R), _ = scan(statistics, begin, [starts], constants, 1, chunks)
        if mesh.axes["tensor"] > 1:
            groups = mesh.groups(("tensor",))
            largest_TR = all_gather(largest_R[None], 0, groups)
            total_TR = all_gather(total_R[None], 0, groups)
            largest_R = largest_TR.amax(0)
            total_R = (total_TR * (largest_TR - largest_R).exp()).sum(0)
            target_R = all_reduce(target_R, groups)
        log_z_R = largest_R + total_R.log()
        loss = (weights_R * (log_z_R - target_R + z_loss * log_z_R.square())).sum()
        loss = all_reduce(loss, mesh.groups(("replica", "fsdp")))
        if not any(ctx.needs_input_grad):
            return loss

        def gradients(
            carry: list[Tensor], slices: list[list[Tensor]], constants: list[Tensor]
        ) -> tuple[list[Tensor], list[list[Tensor]]]:
            (grad_x,), ((start,),), x = carry, slices, constants[0]
            target, weight, log_z, factor = constants[4:]
            values, word, tanh, own_WD = logits(start, constants)
            share = (values - log_z[:, None]).exp() * factor[:, None]
            grad = share - torch.where(word == target[:, None], weight[:, None], 0.0)
            if tanh is not None:
                grad = grad * (1 - tanh.square())
            grad = grad.to(x.dtype)
            grad_x = grad_x + product(grad, own_WD, 1, 0)
            return [grad_x], [[embedding.summed(product(grad, x, 0, 0))]]

        factor_R = weights_R * (1 + 2 * z_loss * log_z_R)
        (grad_RD,), (shard_CVD,) = scan(
            gradients,
            [torch.zeros(R, D, device=device)],
            [starts],
            [*constants, weights_R, log_z_R, factor_R],
            1,
            chunks,
        )
        ctx.save_for_backward(grad_RD.to(x_RD.dtype), shard_CVD.flatten(0, 1))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_RD, shard_VD = ctx.saved_tensors
        return grad_RD * grad.to(grad_RD.dtype), shard_VD * grad.to(shard_VD.dtype), None, None, None, None, None


def _chunk_rows(rows: int, logits_per_row: int) -> int:
    """Rows of each shard that a chunk takes: most that keep a chunk's logits below LOGITS, in multiples of 8 if some
    divide, as the chip lays out matrices."""
    fit = [n for n in range(1, rows + 1) if rows % n == 0 and (n * logits_per_row <= LOGITS or n == 1)]
    return max([n for n in fit if n % 8 == 0] or fit)

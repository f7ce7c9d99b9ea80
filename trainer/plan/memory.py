"""Most memory that tensors of one process take in a training step, and what it is made of.

A step is followed through its moments: the loss, the start of the backward pass, the backward pass of each block, the
gradient of the embedding, the update. Each holds known tensors; the fullest moment is the peak. What the device adds
of its own (CUDA context, libraries' workspaces, gaps between tensors, buffers of Gloo and NCCL) is not in it.

Numbers are elements until they are multiplied by bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from trainer.model.config import Kind
from trainer.plan.attention import fused
from trainer.plan.layout import MASTER, Layout
from trainer.plan.update import moment_numbers, working_bytes

# Of a chunk of the loss, and of its product that is computed at once: those of trainer.model.loss, which needs torch.
LEAST_ROWS, CHUNK = 512, 2**25
PART, OTHER_PART = {"cpu": 2**21}, 2**26
FLOAT = 4  # bytes where norms, scores and the loss compute in float32


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the fullest moment of a step.

    moment         when that is
    masters        fp32 weights
    moments        of the optimizer
    average        of the weights, where one is kept
    snapshot       copy of all these that a save writes from, where the device is the host
    gradients      fp32, of the weights whose shards it holds
    gathered       weights that processes put together, and the buffers they do it in
    reduced        gradients before they are summed over processes, and the buffers of that
    kept           activations from the forward pass that the backward pass needs
    working        what the moment itself needs: the loss, or the backward pass of one block
    """

    moment: str
    masters: int
    moments: int
    average: int
    snapshot: int
    gradients: int
    gathered: int
    reduced: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(value for value in dataclasses.astuple(self) if isinstance(value, int))


def peak(layout: Layout, micro_batches: int = 1) -> Memory:
    """The fullest moment of a step of so many micro-batches."""
    return max(_moments(layout, micro_batches), key=lambda memory: memory.total)


def _moments(at: Layout, micro_batches: int) -> list[Memory]:
    """Each moment of the last micro-batch."""
    c, kinds = at.config, at.config.layer_kinds
    width = at.positions * c.d_model
    embedding = c.vocab_size * c.d_model
    masters = MASTER * at.held_numbers()
    block_shard = at.block_numbers() // at.block_shards
    root = at.compute * at.root_numbers()
    block = at.compute * at.block_numbers()
    coming = block if at.block_shards > 1 else 0  # gathered flat, before it is cut into weights
    summed = at.reduce * at.block_numbers()  # what a block's gradients are copied into to be summed
    # The loop over layers of the xla backend has no policy that keeps all.
    policy = "selective" if at.device == "xla" and at.remat == "none" else at.remat
    kept = [KEPT[policy](at, kind) for kind in kinds]
    around = len(set(kinds)) * _surroundings(at)
    final = _norm_keeps(at) * FLOAT * width  # of the last norm
    accumulated = micro_batches > 1

    def moment(
        name: str, *, gradients: int, gathered: int, reduced: int = 0, kept: int = 0, working: int = 0
    ) -> Memory:
        if accumulated:
            gradients = MASTER * at.held_numbers()
        average = masters if at.average else 0
        moments = MASTER * moment_numbers(at)
        snapshot = masters + moments + average if at.snapshot else 0
        return Memory(name, masters, moments, average, snapshot, gradients, gathered, reduced, around + kept, working)

    backward_of_loss = 2 * at.compute * width + (FLOAT + at.compute) * embedding + FLOAT * _part(at)
    moments = [
        moment(
            "loss",
            gradients=0,
            gathered=root + coming,
            kept=sum(kept) + final,
            working=2 * at.compute * width + _loss(at),
        ),
        moment(
            "backward pass of the loss", gradients=0, gathered=root, kept=sum(kept) + final, working=backward_of_loss
        ),
    ]
    for index in reversed(range(len(kinds))):
        later = len(kinds) - 1 - index
        recomputed = EVERYTHING(at, kinds[index]) - kept[index] if policy != "none" else 0
        moments.append(
            moment(
                f"backward pass of block {index}",
                gradients=MASTER * later * block_shard,
                gathered=root + block + (coming if index else 0),
                reduced=at.compute * embedding + (summed if later else 0),
                kept=sum(kept[: index + 1]) + recomputed,
                working=_backward(at),
            )
        )
        moments.append(
            moment(
                f"last gradients of block {index}",
                gradients=MASTER * later * block_shard,
                gathered=root + block + (coming if index else 0),
                reduced=at.compute * embedding + (summed if later else 0) + at.compute * at.block_numbers(),
                kept=sum(kept[:index]),
                working=(_norm_keeps(at) + _norm_works(at)) * FLOAT * width,
            )
        )
    held = MASTER * at.held_numbers()
    gradients = MASTER * len(kinds) * block_shard
    moments += [
        moment(
            "gradient of the embedding",
            gradients=gradients,
            gathered=root,
            reduced=2 * at.compute * embedding + summed,
            working=2 * at.compute * width,
        ),
        moment(
            "sum of the embedding's gradient",
            gradients=held,
            gathered=0,
            reduced=at.compute * embedding + at.reduce * at.root_numbers(),
        ),
        moment("update", gradients=held, gathered=0, working=working_bytes(at)),
    ]
    return moments


def _norm_keeps(at: Layout) -> int:
    """Float32 copies of its input that a norm keeps: torch's fused one the input, the one of its parts x / rms too."""
    return 1 if at.device == "cuda" else 2


def _norm_works(at: Layout) -> int:
    """Those that the backward pass of a norm holds at once."""
    return 3 if at.device == "cuda" else 5


def _surroundings(at: Layout) -> int:
    """Angles that layers of one kind share, and which keys each position sees: a mask, or the place of the first."""
    masks = {"sdpa": at.sequence_length, "reference": at.sequence_length, "documents": 8}
    return at.attended * (FLOAT * at.config.head_dim + masks.get(at.kernel, 0))


def _attention(at: Layout) -> int:
    """What `trainer.model.attention.attend` keeps of itself, its inputs and output included."""
    c, heads = at.config, at.query_heads
    # Key heads that several query heads read are repeated for torch; a single one is read where it lies.
    repeated = at.kernel == "sdpa" and fused(at) and 1 < at.key_heads < heads
    kept = 2 * at.attended * heads + 2 * at.keys * (heads if repeated else at.key_heads)
    kept *= at.compute * c.head_dim
    pairs = at.attended * at.sequence_length
    if at.kernel == "documents":  # scores are formed again, and so are their sums
        return kept
    if fused(at):  # the log of each row's sum, and masks as numbers to add
        return kept + FLOAT * at.attended * heads + (at.compute * pairs if at.kernel == "sdpa" else 0)
    # The plain formula: tanh and softmax in float32, the latter laid out for its product, and where the mask is not.
    scores = (1 if c.attention_soft_cap is None else 2) * FLOAT + at.compute
    return kept + scores * pairs * heads + pairs


def _everything(at: Layout, kind: Kind) -> int:
    """Bytes that a block's backward pass needs, all kept from its forward pass."""
    c, heads = at.config, at.query_heads + at.key_heads
    norms = 4 if c.post_norms else 2
    kept = _norm_keeps(at) * FLOAT * norms * at.positions * c.d_model
    if c.qk_norm:
        kept += _norm_keeps(at) * FLOAT * at.attended * heads * c.head_dim
    inputs = 2 * at.attended * c.d_model  # of attention and feed-forward
    feed_forward = 4 * at.attended * at.hidden  # gate, its GELU, up, and the product of these
    return kept + at.compute * (inputs + feed_forward) + _attention(at)


def _products(at: Layout, kind: Kind) -> int:
    """Bytes of the block's input and of what its matrix products and its attention put out."""
    c = at.config
    heads = 2 * at.query_heads + 2 * at.key_heads  # queries and attention's output; keys and values
    outputs = at.attended * (heads * c.head_dim + 2 * at.hidden + 2 * c.d_model)
    sums = FLOAT * at.attended * at.query_heads if fused(at) and at.kernel != "documents" else 0
    return _input(at, kind) + at.compute * outputs + sums


def _input(at: Layout, kind: Kind) -> int:
    """Bytes of the block's input alone."""
    return at.compute * at.positions * at.config.d_model


EVERYTHING = _everything
# By `remat`, what of a block is kept from the forward to the backward pass; the rest is computed again.
KEPT: dict[str, Callable[[Layout, Kind], int]] = {"none": _everything, "selective": _products, "block": _input}


def _loss(at: Layout) -> int:
    """The loss: the embedding's gradient, and a chunk's logits with what is made of them or is added to that."""
    c = at.config
    rows = max(LEAST_ROWS, CHUNK // c.vocab_size)
    logits = min(rows, at.positions) * c.vocab_size
    rounded = at.compute != FLOAT
    values = (FLOAT if rounded and not at.compiled else 0) + (FLOAT if c.final_soft_cap is not None else 0)
    added = at.compute + (FLOAT if rounded and at.device == "cpu" else 0)  # a processor widens before it adds
    return at.compute * logits + FLOAT * c.vocab_size * c.d_model + max(values * logits, added * _part(at))


def _part(at: Layout) -> int:
    """Numbers of the embedding's gradient that are computed at once."""
    c = at.config
    words = max(1, PART.get(at.device, OTHER_PART) // c.d_model)
    return min(words, c.vocab_size) * c.d_model


def _backward(at: Layout) -> int:
    """Gradients within a block's backward pass where most of what was kept is still there."""
    c = at.config
    width, hidden = at.positions * c.d_model, at.attended * at.hidden
    stream = 2 * at.compute * width
    feed_forward = at.compute * (2 * hidden + c.d_model * at.hidden)
    if not c.post_norms:
        return stream + feed_forward
    # A norm behind the feed-forward comes first; what it kept is gone when the feed-forward's gradients come.
    return stream + max(_norm_works(at) * FLOAT * width, feed_forward - _norm_keeps(at) * FLOAT * width)

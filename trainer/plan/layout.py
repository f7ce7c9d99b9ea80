"""What one process holds of a job: its share of rows, positions, heads and weights, as `trainer.backend.native` cuts
them. The process is the first, whose share is never the smaller one where shares are unequal.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from conf import schema
from trainer.model.config import GemmaConfig

BYTES = {"fp32": 4, "bf16": 2}
MASTER = 4  # bytes of an fp32 master, gradient or moment


@dataclass(frozen=True)
class Layout:
    """A model on a mesh, and the rows that a process takes at a time.

    axes        size of each axis of `schema.AXES`
    rows        of a forward pass
    compute     bytes of a number in forward and backward passes
    reduce      bytes of a number while gradients are summed over processes
    remat       policy of recomputation
    device      cpu, cuda or xla
    kernel      of attention, a name of `trainer.model.kernels.KERNELS`
    document    tokens of a document, as far as operations depend on it; memory has to do for rows of one
    compiled    whether blocks are
    optimizer   adamw or muon
    average     whether an average of the weights is kept
    snapshot    whether saves beside the steps copy what they write to the device, as it is the host
    """

    config: GemmaConfig
    axes: dict[str, int]
    rows: int
    sequence_length: int
    compute: int
    reduce: int
    remat: str
    device: str
    kernel: str
    document: int
    compiled: bool
    optimizer: str
    average: bool
    snapshot: bool

    @classmethod
    def of(cls, job: schema.Job, config: GemmaConfig, axes: dict[str, int], device: str, document: int) -> Layout:
        """As a job says, with documents of so many tokens, or of a row."""
        return cls(
            config=config,
            axes=axes,
            rows=job.micro_batch,
            sequence_length=job.data.sequence_length,
            compute=BYTES[job.precision],
            reduce=BYTES[job.mesh.reduce_dtype],
            remat=job.remat,
            device=device,
            kernel=schema.attention_kernel(job, device, axes["context"]),
            document=min(document, job.data.sequence_length),
            compiled=job.compile,
            optimizer=job.optim.name,
            average=job.optim.ema is not None,
            snapshot=device == "cpu" and job.checkpoint.every < job.steps,
        )

    def with_rows(self, rows: int) -> Layout:
        """The same with another micro-batch."""
        return dataclasses.replace(self, rows=rows)

    @property
    def processes(self) -> int:
        """All of them."""
        return math.prod(self.axes.values())

    @property
    def feeders(self) -> int:
        """Processes, those that share rows counted as one."""
        return self.axes["replica"] * self.axes["fsdp"]

    @property
    def positions(self) -> int:
        """Tokens of a forward pass that a process holds between attention and feed-forward."""
        return self.attended // self.axes["tensor"]

    @property
    def attended(self) -> int:
        """Those that it holds inside them."""
        return self.rows * self.sequence_length // self.axes["context"]

    @property
    def keys(self) -> int:
        """Positions of its rows whose keys and values it sees."""
        return self.rows * self.sequence_length

    @property
    def query_heads(self) -> int:
        """Query heads that it computes."""
        return self.config.num_heads // self.axes["tensor"]

    @property
    def key_heads(self) -> int:
        """Key heads that it computes: its own, or the one that its queries read of those that all hold."""
        own, shared = divmod(self.config.num_kv_heads, self.axes["tensor"])
        return 1 if shared else own

    @property
    def hidden(self) -> int:
        """Hidden units of the feed-forward that it computes."""
        return self.config.d_ff // self.axes["tensor"]

    @property
    def block_shards(self) -> int:
        """Processes that shard what one holds of a block."""
        return self.axes["fsdp"] * self.axes["context"]

    @property
    def root_shards(self) -> int:
        """Processes that shard what lies outside blocks."""
        return self.block_shards * self.axes["tensor"]

    def block_weights(self) -> list[tuple[int, int]]:
        """Rows and columns of each weight of a block, after the tensor axis divided them and before FSDP does."""
        c, tensor = self.config, self.axes["tensor"]
        queries = self.query_heads * c.head_dim
        keys = c.num_kv_heads * c.head_dim // (1 if c.num_kv_heads % tensor else tensor)
        norms = [(c.d_model, 1)] * (4 if c.post_norms else 2) + [(c.head_dim, 1)] * (2 if c.qk_norm else 0)
        attention = [(queries, c.d_model), (keys, c.d_model), (keys, c.d_model), (c.d_model, queries)]
        return [*attention, *[(self.hidden, c.d_model)] * 2, (c.d_model, self.hidden), *norms]

    def matrices(self) -> list[tuple[int, int]]:
        """Rows and columns of each matrix of a block, whole, in the order of the model."""
        c = self.config
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        attention = [(queries, c.d_model), (keys, c.d_model), (keys, c.d_model), (c.d_model, queries)]
        return [*attention, *[(c.d_ff, c.d_model)] * 2, (c.d_model, c.d_ff)]

    def root_weights(self) -> list[tuple[int, int]]:
        """Those of the embedding and of the last norm."""
        return [(self.config.vocab_size, self.config.d_model), (self.config.d_model, 1)]

    def block_numbers(self) -> int:
        """Numbers of a block's weights, rows padded so that each process has as many."""
        return self.block_shards * _shard(self.block_weights(), self.block_shards)

    def root_numbers(self) -> int:
        """The same outside blocks."""
        return self.root_shards * _shard(self.root_weights(), self.root_shards)

    def held_numbers(self) -> int:
        """Numbers of weights of which the process keeps masters and moments."""
        return self.config.num_layers * self.block_numbers() // self.block_shards + (
            self.root_numbers() // self.root_shards
        )

    def held_matrix_numbers(self) -> int:
        """Those of matrices of blocks."""
        return self.config.num_layers * _shard(self._matrices(), self.block_shards)

    def largest_held_matrix(self) -> int:
        """Those of the largest of them."""
        return max(_shard([matrix], self.block_shards) for matrix in self._matrices())

    def _matrices(self) -> list[tuple[int, int]]:
        """Those of `block_weights`."""
        return [weight for weight in self.block_weights() if weight[1] > 1]


def _shard(weights: list[tuple[int, int]], shards: int) -> int:
    """Numbers of one of so many shards, each weight cut along its rows."""
    return sum(-(-rows // shards) * columns for rows, columns in weights)

"""The shards of one manifest as rows: windows packed when they are opened, tokens fetched for the rows that are wanted.

Knows nothing of the order of samples, of batches or of who reads. Shape suffixes: P pieces of a window.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from conf.exits import ConfigError, DataError
from data_pipeline.mixture import whole_weights
from data_pipeline.pack import pack
from data_pipeline.plan import Packing, Windows, load_plan, plan_name
from data_pipeline.reader import Shards
from data_pipeline.skips import Skips


@dataclass(frozen=True, eq=False)
class Window:
    """The pieces of a window side by side, in the order of its rows; `ends` are those of the rows.

    `tokens` holds those of the blocks that were asked for, documents end to end, until the window is closed.
    """

    number: int  # of all windows
    blocks: list[int]
    documents: list[int]  # within their blocks
    starts: list[int]  # first slot within the document
    slots: list[int]
    at: list[int]  # first input among the tokens of the block
    ends: list[int]
    tokens: dict[int, memoryview] = field(default_factory=dict)

    def pieces(self, row: int) -> slice:
        """The pieces of a row."""
        return slice(self.ends[row - 1] if row else 0, self.ends[row])


class PackedShards:
    """Attributes: `shards`, `plan`, and `names` of the sources."""

    def __init__(self, shards: Shards, how: Packing) -> None:
        self.shards, self.how = shards, how
        self.plan = load_plan(shards, how)
        self.names = [source.name for source in shards.sources]
        self._windows = Windows(shards, how)
        self._first_window = [self._windows.of_source(source).start for source in range(len(self.names))]
        self._open: dict[int, Window] = {}  # of each source the one that is read; samples pass through them in turn

    @property
    def rows(self) -> list[np.ndarray]:
        """Of each source, the rows of its windows."""
        return [self.plan.rows[self._windows.of_source(source)] for source in range(len(self.names))]

    def weights(self, given: Mapping[str, float]) -> tuple[int, ...]:
        """Whole weights of the sources: as given, else their rows. Raises ConfigError for a name that is none."""
        if not given:
            return tuple(tally.rows for tally in self.plan.tallies)
        if unknown := sorted(given.keys() - set(self.names)):
            raise ConfigError(
                f"data.mixture gives a weight to {', '.join(unknown)}, but the sources of {self.shards.manifest} are "
                f"{', '.join(self.names)}"
            )
        return whole_weights(given, self.names)

    def window(self, source: int, number: int) -> Window:
        """A window of a source, numbered within it; the one that was open is closed."""
        overall = self._first_window[source] + number
        window = self._open.get(source)
        if window is None or window.number != overall:
            window = self._open[source] = self._pack(overall)
        return window

    def fetch(self, wanted: Collection[tuple[Window, int]]) -> None:
        """Give windows the tokens of blocks, all read at once."""
        blocks = sorted({block for _, block in wanted})
        tokens_of = dict(zip(blocks, self.shards.tokens_of(blocks), strict=True))
        for window, block in wanted:  # a tiny window may have been closed and opened again in between
            window.tokens[block] = tokens_of[block]

    def window_of(self, block: int) -> tuple[int, int]:
        """The source and the window within it that hold a block."""
        overall = self._windows.holding(block)
        source = self._windows[overall].source
        return source, overall - self._first_window[source]

    def left_out(self, window: Window, row: int, sample: int, skips: Skips) -> tuple[int, ...]:
        """Numbers of the pieces of a row whose documents are left out of a sample."""
        here, numbers = window.pieces(row), []
        for number, (block, document) in enumerate(zip(window.blocks[here], window.documents[here], strict=True)):
            documents = skips.of_block(self.shards.sha256, block, sample)
            if documents is None or document in documents:
                numbers.append(number)
        return tuple(numbers)

    def _pack(self, number: int) -> Window:
        _, first, stop = self._windows[number]
        lengths, counts = self.shards.lengths(first, stop), self.shards.documents_per_block(first, stop)
        rows = pack(lengths, self.how.sequence_length, self.how.packing)
        if len(rows) != self.plan.rows[number]:
            raise DataError(
                f"{plan_name(self.how)} beside {self.shards.manifest} gives window {number} {self.plan.rows[number]} "
                f"rows, but its documents fill {len(rows)}: remove the file, it is made again"
            )
        first_documents = np.cumsum(counts) - counts
        block_P = np.searchsorted(np.cumsum(counts), rows.documents_P, side="right")
        starts = np.cumsum(lengths) - lengths
        at_P = starts[rows.documents_P] - starts[first_documents[block_P]] + rows.starts_P
        return Window(
            number=number,
            blocks=(block_P + first).tolist(),
            documents=(rows.documents_P - first_documents[block_P]).tolist(),
            starts=rows.starts_P.tolist(),
            slots=rows.slots_P.tolist(),
            at=at_P.tolist(),
            ends=rows.ends_R.tolist(),
        )

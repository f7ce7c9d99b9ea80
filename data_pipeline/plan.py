"""How many rows each window packs into: what an order must know of the shards before it can name a sample.

Knows nothing of seeds, epochs or tokens. Windows are fixed groups of consecutive blocks of one source; each is packed
on its own, so what a window's rows hold never changes. A plan follows from the lengths of the documents; `gemcutter
tokenize` stores it beside the shards, so that opening a million shards does not read all their indexes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from conf.exits import DataError
from data_pipeline.pack import Rows, pack
from data_pipeline.reader import Shards

FORMAT = 2  # 2 counts targets; a plan of another format is made again
# Raise when packing or windows change what a row holds: cursors and plans of before are then refused.
VERSION = 2


@dataclass(frozen=True)
class Packing:
    """How documents become rows; with the shards it fixes what each window holds."""

    sequence_length: int
    packing: str
    window_blocks: int


class Window(NamedTuple):
    """A group of blocks [first, stop) that are packed together."""

    source: int  # index into the sources of the shards
    first: int
    stop: int


@dataclass
class Tally:
    """How well a source is packed, in counts that add up."""

    rows: int = 0
    targets: int = 0  # of the documents: every token but BOS
    slots: int = 0  # that hold a token, and predict one of these
    documents: int = 0
    pieces: int = 0
    documents_split: int = 0  # that do not stay in one row
    needless_splits: int = 0  # of these, documents that would have fitted into a row
    rows_shared: int = 0  # that hold more than one document
    most_pieces: int = 0  # in a row

    def add(self, rows: Rows, lengths: np.ndarray, sequence_length: int) -> None:
        """Count a packed window."""
        pieces_R = np.diff(rows.ends_R, prepend=0)
        split = np.unique(rows.documents_P[rows.starts_P > 0])
        self.rows += len(rows)
        self.targets += int((lengths - 1).sum())
        self.slots += int(rows.slots_P.sum())
        self.documents += len(lengths)
        self.pieces += len(rows.slots_P)
        self.documents_split += len(split)
        self.needless_splits += int(np.count_nonzero(lengths[split] - 1 <= sequence_length))
        self.rows_shared += int(np.count_nonzero(pieces_R > 1))
        self.most_pieces = max(self.most_pieces, int(pieces_R.max(initial=0)))

    def __add__(self, other: Tally) -> Tally:
        summed = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Tally(**summed | {"most_pieces": max(self.most_pieces, other.most_pieces)})


@dataclass(frozen=True)
class Plan:
    """Rows of each window, and how well each source is packed.

    rows      int64, rows of each window, the windows of a source after those of the source before
    tallies   of each source
    """

    rows: np.ndarray
    tallies: list[Tally]
    sequence_length: int

    def figures(self) -> dict[str, Any]:
        """What to report of a packing.

        fill              share of slots that hold a token
        documents_split   documents that do not stay in one row, and needless_splits those of them that would fit
        tokens_cut        targets that no row predicts
        cross_document    share of rows that hold several documents, which attention must keep apart
        documents_per_row
        """
        whole = sum(self.tallies, Tally())
        return {
            "rows": whole.rows,
            "fill": round(whole.slots / (whole.rows * self.sequence_length), 6),
            "documents_split": whole.documents_split,
            "needless_splits": whole.needless_splits,
            "tokens_cut": whole.targets - whole.slots,
            "cross_document": round(whole.rows_shared / whole.rows, 6),
            "documents_per_row": round(whole.pieces / whole.rows, 3),
        }

    @property
    def most_pieces(self) -> int:
        """Documents that the fullest row holds parts of."""
        return max(tally.most_pieces for tally in self.tallies)


class Windows:
    """Where the windows of some shards begin and end."""

    def __init__(self, shards: Shards, how: Packing) -> None:
        counts = [-(-source.num_blocks // how.window_blocks) for source in shards.sources]
        self._sources = shards.sources
        self._size = how.window_blocks
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def of_source(self, source: int) -> slice:
        """The numbers of a source's windows."""
        return slice(int(self._ends[source - 1]) if source else 0, int(self._ends[source]))

    def __getitem__(self, number: int) -> Window:
        source = int(np.searchsorted(self._ends, number, side="right"))
        own = self._sources[source]
        first = own.first_block + (number - self.of_source(source).start) * self._size
        return Window(source, first, min(first + self._size, own.first_block + own.num_blocks))

    def holding(self, block: int) -> int:
        """The number of the window that holds a block."""
        ends = [source.first_block + source.num_blocks for source in self._sources]
        source = int(np.searchsorted(ends, block, side="right"))
        return self.of_source(source).start + (block - self._sources[source].first_block) // self._size


def make_plan(shards: Shards, how: Packing) -> Plan:
    """Pack every window on paper, from the lengths in the indexes. Raises DataError where there is no document."""
    if shards.documents == 0:
        raise DataError(
            f"{shards.manifest} holds no documents: curate more text, or name other shards "
            "(data.manifest, data.held_out)"
        )
    rows = []
    tallies = [Tally() for _ in shards.sources]
    windows = Windows(shards, how)
    for number in range(len(windows)):
        source, first, stop = windows[number]
        lengths = shards.lengths(first, stop)
        packed = pack(lengths, how.sequence_length, how.packing)
        tallies[source].add(packed, lengths, how.sequence_length)
        rows.append(len(packed))
    return Plan(np.array(rows, dtype=np.int64), tallies, how.sequence_length)


def plan_name(how: Packing) -> str:
    """The plan's file, beside the manifest."""
    return f"plan-S{how.sequence_length}-{how.packing}-w{how.window_blocks}.npz"


def dump_plan(shards: Shards, how: Packing, plan: Plan) -> bytes:
    """The plan as the bytes of its file, bound to the shards and the packing it is for."""
    rows = plan.rows.astype("<i8")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "manifest": shards.sha256,
        "rows_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "tallies": [vars(tally) for tally in plan.tallies],
        **vars(how),
    }
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), rows=rows)
    return buffer.getvalue()


def load_plan(shards: Shards, how: Packing) -> Plan:
    """The stored plan where it is one of these shards and this packing; else it is made anew."""
    data = shards.beside(plan_name(how))
    if data is None:
        return make_plan(shards, how)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            header, rows = json.loads(stored["header"].tobytes()), stored["rows"]
        if header["format"] != FORMAT or header["version"] != VERSION or header["manifest"] != shards.sha256:
            return make_plan(shards, how)
        if header["rows_sha256"] != hashlib.sha256(rows.tobytes()).hexdigest():
            raise ValueError("its rows are not those of its digest")
        return Plan(rows, [Tally(**tally) for tally in header["tallies"]], how.sequence_length)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{plan_name(how)} beside {shards.manifest} is not a plan ({error}): remove it, it is made again"
        ) from error

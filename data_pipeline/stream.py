"""Token shards to batches: the stream a trainer reads.

Knows nothing of models or devices. Sample i is the row that `order.py` names, whoever asks: ranks, workers and restarts
only choose which samples they build. A batch carries the cursor that follows it.

Shape suffixes: B rows, S positions per row, P pieces of a window, N ends of sequences, K counts.
"""

from __future__ import annotations

import functools
import hashlib
import json
from bisect import bisect_left
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from conf import schema
from conf.exits import ConfigError
from data_pipeline.batch import Batch, Cursor
from data_pipeline.disk_cache import DiskCache
from data_pipeline.feeder import PREFETCH, Share, next_samples, prepared
from data_pipeline.mixture import Mixture, Stage
from data_pipeline.order import Order, order_sha256
from data_pipeline.packed import PackedShards, Window
from data_pipeline.plan import Packing
from data_pipeline.ramp import Ramp
from data_pipeline.reader import Shards
from data_pipeline.rows import Row, fill
from data_pipeline.skips import Skips
from data_pipeline.tokenizer import Tokenizer


class Span(NamedTuple):
    """A part of a row: `slots` inputs of a document, from its token `start` on. `weight` is 0 where it is left out."""

    block: int
    document: int  # within the block
    start: int
    slots: int
    weight: int


def documents(manifest: str, tokenizer: Tokenizer | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """(id, tokens) of every document, whole, in the order of the shards; tokens begin with BOS and end with EOS.

    The tokenizer is needed where the shards are an index of texts.
    """
    for block in Shards.open(manifest, tokenizer=tokenizer).blocks():
        yield from block.documents()


class TokenStream:
    """Batches of packed documents from the shards of a manifest, and of those that stages of the mixture name.

    Attributes: `shards` (what the manifest says of them), `plan` (how well they are packed), `order`, `names` (of the
    sources), `count_names` (of what `Batch.counts_K` counts).
    Raises DataError where shards are missing or broken, ConfigError where the mixture does not fit them.
    """

    def __init__(
        self,
        manifest: str,
        *,
        sequence_length: int,
        packing: str,
        window_blocks: int,
        seed: int,
        mixture: Sequence[schema.Stage] = (),
        skips: Skips | None = None,
        workers: int = 0,
        cache: DiskCache | None = None,
        tokenizer: Tokenizer | None = None,
        skippable: bool = True,
    ) -> None:
        self.how = Packing(sequence_length, packing, window_blocks)
        self.seed, self.workers = seed, workers
        self._order_sha256 = order_sha256(self.how, seed)
        self.skips = skips or Skips()
        self._parts: list[PackedShards] = []
        self._stages: list[_Stage] = []
        for stage in mixture or [schema.Stage()]:
            part = self._open(Shards.open(stage.manifest or manifest, cache, tokenizer, skippable=skippable))
            weights = self._parts[part].weights(stage.weights)
            self._stages.append(_Stage(stage.from_sample, part, self._parts[part].shards, weights))
        self._firsts = [stage.first for stage in self._stages]
        self.shards, self.plan = self._parts[0].shards, self._parts[0].plan
        self.names = self._names()
        # Of each source its part, and its number there; and of each part the number of its first source.
        self._places = [(part, number) for part in self._parts for number in range(len(part.names))]
        self._first_source = [self._places.index((part, 0)) for part in self._parts]
        self.count_names = [f"tokens/{name}" for name in self.names] + [f"storage/{name}" for name in _STORAGE]
        self.order = Order(self.names, [rows for part in self._parts for rows in part.rows], self._mixture(), seed)
        self._most_pieces = max(part.plan.most_pieces for part in self._parts)
        self._told = [0] * len(_STORAGE)

    @property
    def all_shards(self) -> list[Shards]:
        """The shards of every manifest that a stage reads."""
        return [part.shards for part in self._parts]

    def shards_begun(self, samples_done: int) -> list[Shards]:
        """The shards of every manifest that had a part in the samples before this one."""
        parts = dict.fromkeys(stage.part for stage in self._stages[: self.stages_begun(samples_done)])
        return [self._parts[part].shards for part in parts]

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the manifest's shards: samples until every token was seen once where no weights are given."""
        return int(self.plan.rows.sum())

    def cursor(self, samples_done: int) -> Cursor:
        """The cursor that stands before sample `samples_done` of this order."""
        stages = self.stages_begun(samples_done)
        return Cursor(
            samples_done,
            self.shards.sha256,
            self._order_sha256,
            _digest(tuple(stage.identity for stage in self._stages[:stages])),
            self.skips.sha256(samples_done),
        )

    def stages_begun(self, samples_done: int) -> int:
        """How many stages of the mixture had a part in the samples before this one."""
        return bisect_left(self._firsts, max(1, samples_done))

    def describe(self) -> dict[str, Any]:
        """What the order depends on, for people: so that a difference can be shown, not only found."""
        return {
            "manifest": self.shards.manifest,
            "seed": self.seed,
            **vars(self.how),
            "mixture": [stage.describe() for stage in self._stages],
            "skips": [vars(entry) for entry in self.skips.entries],
        }

    def batches(
        self,
        *,
        rows_per_step: int | Ramp,
        micro_batch: int,
        rank: int,
        world: int,
        start: Cursor | None = None,
        step: int = 0,
        prefetch: int = PREFETCH,
    ) -> Generator[Batch]:
        """Micro-batches of a rank, for ever.

        A step covers `rows_per_step` samples; where that is a ramp, `step` (0 is the first) is the one that begins at
        `start`. Its micro-batch a holds, on rank r, the `micro_batch` samples from number
        (a * world + r) * micro_batch of the step on, so the samples of a step are the same for every world. The cursor
        of a batch counts finished steps only: it moves with the last micro-batch of a step.

        Raises ConfigError where `start` was taken on other shards or another order; see `check` to show the difference.
        """
        ramp = rows_per_step if isinstance(rows_per_step, Ramp) else Ramp.constant(rows_per_step)
        if any(rows % (micro_batch * world) for _, rows in ramp.stages):
            raise ValueError(f"{rows_per_step=} is not a multiple of {micro_batch=} x {world=}")
        if start is not None:
            self.check(start)
        share = Share(self, start.samples_done if start else 0, step, ramp, micro_batch, rank, world)
        return prepared(share, self.workers, prefetch)

    def epoch(self, *, micro_batch: int, rank: int = 0, world: int = 1, rows: int | None = None) -> Iterator[Batch]:
        """Micro-batches of a rank over the first `rows` samples (default: one epoch), for a loss on held-out text.

        Every rank gets the same number of batches; rows beyond the last sample are empty (segment and weight 0).
        """
        stop = self.rows_per_epoch if rows is None else min(rows, self.rows_per_epoch)
        for base in range(0, stop, micro_batch * world):
            first = base + rank * micro_batch
            yield self.build([(range(first, min(first + micro_batch, stop)), stop)], micro_batch)[0]

    def build(self, wanted: Sequence[tuple[Sequence[int], int]], rows: int) -> list[Batch]:
        """A batch of so many rows for each (samples, samples done when it is used); what samples do not fill is empty.

        All are made together, and their tokens fetched at once: they share memory, and most of the cost is per call.
        """
        samples = [sample for own, _ in wanted for sample in [*own, *[None] * (rows - len(own))]]
        packed, sources = self._rows(samples)
        filled = fill(packed, len(samples), self.how.sequence_length, self.shards.dtype)
        cu_seqlens, longest = self._sequences(filled.slots_P, len(wanted), rows)
        counts, cursor, batches = self._counts(packed, sources, rows), None, []
        for number, (_, samples_done) in enumerate(wanted):
            if cursor is None or cursor.samples_done != samples_done:
                cursor = self.cursor(samples_done)
            here = slice(number * rows, (number + 1) * rows)
            batches.append(
                Batch(
                    tokens_BS=torch.from_numpy(filled.tokens_BS[here]),
                    targets_BS=torch.from_numpy(filled.targets_BS[here]),
                    segments_BS=torch.from_numpy(filled.segments_BS[here]),
                    positions_BS=torch.from_numpy(filled.positions_BS[here]),
                    weights_BS=torch.from_numpy(filled.weights_BS[here]),
                    cu_seqlens_N=torch.from_numpy(cu_seqlens[number]),
                    longest=longest[number],
                    counts_K=torch.from_numpy(counts[number]),
                    cursor=cursor,
                )
            )
        return batches

    def spans(self, sample: int) -> list[Span]:
        """The pieces of a sample, in the order of its row."""
        part, window, row = self._find(sample)
        here = window.pieces(row)
        pieces = zip(window.blocks[here], window.documents[here], window.starts[here], window.slots[here], strict=True)
        left_out = part.left_out(window, row, sample, self.skips)
        return [Span(*piece, weight=int(number not in left_out)) for number, piece in enumerate(pieces)]

    def shards_of(self, sample: int) -> Shards:
        """The shards that a sample is read from."""
        return self._places[self.order.place(sample).source][0].shards

    def step_samples(self, ramp: Ramp, step: int) -> Sequence[int]:
        """The samples of a step (the first is 0), without those that are passed over."""
        return next_samples(self.skips, self.skips.advance(0, ramp.before(step)), ramp.rows(step))

    def samples_of(self, manifest: str, block: int, document: int, before: int) -> list[int]:
        """The samples below `before` that hold any part of a document, in the order in which they are read.

        `manifest` is the sha256 of the shards that `block` is of, `document` a number within the block.
        """
        samples: list[int] = []
        for part, first_source in zip(self._parts, self._first_source, strict=True):
            if part.shards.sha256 != manifest:
                continue
            source, number = part.window_of(block)
            window = part.window(source, number)
            places = enumerate(zip(window.blocks, window.documents, strict=True))
            pieces = [piece for piece, place in places if place == (block, document)]
            for row in np.unique(np.searchsorted(window.ends, pieces, side="right")).tolist():
                samples += self.order.samples(first_source + source, number, row, before)
        return sorted(sample for sample in samples if not self.skips.leaves_out(sample))

    def planned_tokens(self, samples_done: int) -> dict[str, float]:
        """Targets that each source should have given by then: its share of the rows read, as full as its own rows are.

        A figure to hold the counts against; by how much a source may be off in a row, the mixture says.
        """
        planned = dict.fromkeys(self.names, 0.0)
        ends = [stage.first for stage in self._stages[1:]] + [samples_done]
        for stage, end in zip(self._stages, ends, strict=True):
            if stage.first >= samples_done:
                break
            rows = self.skips.passed(min(end, samples_done)) - self.skips.passed(stage.first)
            for number, weight in enumerate(stage.weights):
                tally = self._parts[stage.part].plan.tallies[number]
                name = self.names[self._first_source[stage.part] + number]
                planned[name] += rows * weight / sum(stage.weights) * tally.slots / max(1, tally.rows)
        return planned

    def repetitions(self, samples_done: int) -> dict[str, float]:
        """Epochs of each source before a sample."""
        counts = self.order.mixture.counts(samples_done)
        rows = [max(1, tally.rows) for part in self._parts for tally in part.plan.tallies]
        return {name: count / own for name, count, own in zip(self.names, counts, rows, strict=True)}

    def refuse_repetitions(self, limits: Mapping[str, float], samples: int) -> None:
        """Raise ConfigError where a source would be read more often than `limits` allow within so many samples."""
        if unknown := sorted(limits.keys() - {*self.names, "*"}):
            raise ConfigError(
                f"data.max_repetitions names {', '.join(unknown)}, but the sources are {', '.join(self.names)}"
            )
        total = self.skips.advance(0, samples)
        over = [
            f"{name} {times:.2f} times (data.max_repetitions.{name if name in limits else '*'}={limit})"
            for name, times in self.repetitions(total).items()
            if (limit := limits.get(name, limits.get("*"))) is not None and times > limit
        ]
        if over:
            raise ConfigError(
                f"by sample {total} (the last of `steps`) these sources are read more often than allowed: "
                f"{'; '.join(over)}. Lower their weights in data.mixture, append a stage without them, or lower steps"
            )

    def check(self, start: Cursor, described: Mapping[str, Any] | None = None) -> None:
        """Raise ConfigError, with the difference, unless a cursor is one of this order.

        `described` is what `describe` gave where the cursor was taken. Stages and skips after it may differ.
        """
        here = self.cursor(start.samples_done)
        was, now = described or {}, self.describe()
        differences = []
        if start.manifest != here.manifest:
            differences.append(
                f"the shards (manifest sha256 {start.manifest}, here {here.manifest} of {now['manifest']}; to go on "
                "with other shards from here, append a stage to data.mixture that names their manifest)"
            )
        if start.order != here.order:
            keys = [key for key in ("seed", "sequence_length", "packing", "window_blocks") if was.get(key) != now[key]]
            shown = ", ".join(f"{_KEYS[key]}={now[key]}" + (f" (was {was[key]})" if key in was else "") for key in keys)
            differences.append(f"the order (sha256 {start.order}, here {here.order} of {shown})")
        for key, what in (("mixture", "the stages of data.mixture"), ("skips", "the entries of the skip list")):
            if getattr(start, key) != getattr(here, key):
                field = "first" if key == "mixture" else "from_sample"
                then, current = (
                    [entry for entry in entries if entry[field] < max(1, start.samples_done)]
                    for entries in (was.get(key, []), now[key])
                )
                differences.append(f"{what} that had a part in it ({_shown(then)}, here {_shown(current)})")
        if differences:
            raise ConfigError(
                f"cannot resume after {start.samples_done} samples of {self.shards.manifest}: "
                f"{' and '.join(differences)} differ: restore the values the run was started with, or start a new run. "
                "What is to change from here on can be appended: a stage of data.mixture with "
                f"from_sample={start.samples_done} or more, an entry of `gemcutter skip`"
            )

    def _open(self, shards: Shards) -> int:
        """The number of the part that reads these shards."""
        for number, part in enumerate(self._parts):
            if part.shards.sha256 == shards.sha256:
                return number
            if part.shards.tokenizer_sha256 != shards.tokenizer_sha256:
                raise ConfigError(
                    f"a stage of data.mixture reads {shards.manifest}, whose tokens were made with another tokenizer "
                    f"(sha256 {shards.tokenizer_sha256}) than those of {part.shards.manifest} "
                    f"({part.shards.tokenizer_sha256}): rerun `gemcutter tokenize` with the same tokenizer.model"
                )
        self._parts.append(PackedShards(shards, self.how))
        return len(self._parts) - 1

    def _names(self) -> list[str]:
        """Names of all sources; one of later shards that has the name of an earlier one carries their digest."""
        names: list[str] = []
        for part in self._parts:
            names += [f"{name}@{part.shards.sha256[:8]}" if name in names else name for name in part.names]
        return names

    def _mixture(self) -> Mixture:
        stages = []
        for stage in self._stages:
            weights = [0] * len(self.names)
            first = self._first_source[stage.part]
            weights[first : first + len(stage.weights)] = stage.weights
            stages.append(Stage(stage.first, tuple(weights)))
        return Mixture(stages)

    def _find(self, sample: int) -> tuple[PackedShards, Window, int]:
        source, _, number, row = self.order.place(sample)
        part, own = self._places[source]
        return part, part.window(own, number), row

    def _rows(self, samples: Sequence[int | None]) -> tuple[list[Row], list[int]]:
        """The rows of samples, None for an empty one, and their sources; tokens of all of them are fetched at once."""
        found: list[tuple[Window, slice, tuple[int, ...]]] = []
        sources: list[int] = []
        place, skipping = self.order.place, bool(self.skips.entries)
        for sample in samples:
            if sample is None:
                found.append((_NO_WINDOW, slice(0), ()))
                sources.append(0)
                continue
            source, _, number, row = place(sample)
            part, own = self._places[source]
            window = part.window(own, number)
            left_out = part.left_out(window, row, sample, self.skips) if skipping else ()
            found.append((window, window.pieces(row), left_out))
            sources.append(source)
        try:
            return [self._row(*where) for where in found], sources
        except KeyError:  # of a block that was not read yet: rare, and asking first would cost every row
            absent: dict[PackedShards, set[tuple[Window, int]]] = {}
            for (window, here, left_out), source in zip(found, sources, strict=True):
                for piece, block in enumerate(window.blocks[here]):
                    if block not in window.tokens and piece not in left_out:
                        absent.setdefault(self._places[source][0], set()).add((window, block))
        for part, wanted in absent.items():
            part.fetch(wanted)
        return [self._row(*where) for where in found], sources

    def _row(self, window: Window, here: slice, left_out: tuple[int, ...]) -> Row:
        """A row of a window. Raises KeyError where tokens of it were not fetched."""
        blocks, at, slots = window.blocks[here], window.at[here], window.slots[here]
        if not left_out:
            return Row([window.tokens[block] for block in blocks], at, slots)
        # Tokens of what is left out may not have been read, and must not be seen.
        blank = np.zeros(self.how.sequence_length + 1, self.shards.dtype).data
        tokens = [blank if piece in left_out else window.tokens[block] for piece, block in enumerate(blocks)]
        at = [0 if piece in left_out else first for piece, first in enumerate(at)]
        return Row(tokens, at, slots, left_out)

    def _sequences(self, slots_P: np.ndarray, batches: int, rows: int) -> tuple[np.ndarray, list[int]]:
        """`cu_seqlens_N` and `longest` of batches, from the slots of their runs."""
        size = rows * self.how.sequence_length
        ends_P = slots_P.cumsum()
        begins = [0, *ends_P.searchsorted([size * number for number in range(1, batches)], side="right").tolist()]
        cu_seqlens = np.full((batches, rows * (self._most_pieces + 1) + 1), size, np.int32)
        cu_seqlens[:, 0] = 0
        for number, (begin, end) in enumerate(pairwise([*begins, len(ends_P)])):
            cu_seqlens[number, 1 : end - begin + 1] = ends_P[begin:end] - number * size
        longest = np.maximum.reduceat(slots_P, begins).tolist()
        return cu_seqlens, longest

    def _counts(self, packed: Sequence[Row], sources: Sequence[int], rows: int) -> np.ndarray:
        """`counts_K` of batches; what storage suffered is told by the first."""
        counts = [[0] * len(self.count_names) for _ in range(0, len(packed), rows)]
        for number, (row, source) in enumerate(zip(packed, sources, strict=True)):
            counted = sum(row.slots)
            if row.left_out:
                counted -= sum(row.slots[piece] for piece in row.left_out)
            counts[number // rows][source] += counted
        counts[0][len(self.names) :] = self._storage_counts()
        return np.array(counts, dtype=np.int64)

    def _storage_counts(self) -> list[int]:
        """What storage has suffered since the batch before."""
        now = [sum(getattr(part.shards.files.counts, name) for part in self._parts) for name in _STORAGE]
        since = [count - before for count, before in zip(now, self._told, strict=True)]
        self._told = now
        return since


_NO_WINDOW = Window(-1, [], [], [], [], [], [])
_STORAGE = ("retries", "refetched", "quarantined", "bytes_fetched")
_KEYS = {
    "seed": "seed",
    "sequence_length": "data.sequence_length",
    "packing": "data.packing",
    "window_blocks": "data.window_blocks",
}


@dataclass(frozen=True)
class _Stage:
    first: int
    part: int
    shards: Shards
    weights: tuple[int, ...]

    @functools.cached_property
    def identity(self) -> str:
        return json.dumps([self.first, self.shards.sha256, self.weights])

    def describe(self) -> dict[str, Any]:
        names = [source.name for source in self.shards.sources]
        weights = {name: weight for name, weight in zip(names, self.weights, strict=True) if weight}
        return {"first": self.first, "manifest": self.shards.sha256, "weights": weights}


@functools.lru_cache(maxsize=4)
def _digest(texts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _shown(entries: Sequence[object]) -> str:
    return json.dumps(entries) if entries else "none"

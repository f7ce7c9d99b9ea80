"""Token shards to batches: the stream a trainer reads.

Knows nothing of models or devices. Sample i is the row that `order.py` names, whoever asks: ranks, workers and restarts
only choose which samples they build. A batch carries the cursor that follows it.

Shape suffixes: B rows, S positions per row, P pieces of a window, N ends of sequences, K counts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import signal
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from conf import schema
from conf.exits import ConfigError, DataError
from data_pipeline.batch import Batch, Cursor
from data_pipeline.disk_cache import DiskCache
from data_pipeline.mixture import Mixture, Stage, whole_weights
from data_pipeline.order import Order, Place, order_sha256
from data_pipeline.pack import pack
from data_pipeline.plan import Packing, Plan, Windows, load_plan, plan_name
from data_pipeline.reader import Shards
from data_pipeline.rows import Row, fill
from data_pipeline.skips import Skips

PREFETCH = 4  # micro-batches prepared ahead of the trainer, per thread or worker
_OPEN_WINDOWS = 256  # whose rows are known at a time: one for each source that is read, and those that are just ending


class Span(NamedTuple):
    """A part of a row: `slots` inputs of a document, from its token `start` on. `weight` is 0 where it is left out."""

    block: int
    document: int  # within the block
    start: int
    slots: int
    weight: int


def documents(manifest: str) -> Iterator[tuple[str, np.ndarray]]:
    """(id, tokens) of every document, whole, in the order of the shards; tokens begin with BOS and end with EOS."""
    for block in Shards.open(manifest).blocks():
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
    ) -> None:
        self.how = Packing(sequence_length, packing, window_blocks)
        self.seed, self.workers = seed, workers
        self._order_sha256 = order_sha256(self.how, seed)
        self.skips = skips or Skips()
        self._parts: list[_Part] = []
        self._stages: list[_Stage] = []
        for stage in mixture or [schema.Stage()]:
            part = self._open(stage.manifest or manifest, cache)
            self._stages.append(_Stage(stage.from_sample, part, part.weights(stage.weights)))
        self.shards, self.plan = self._parts[0].shards, self._parts[0].plan
        self.names = self._names()
        self.count_names = [f"tokens/{name}" for name in self.names] + [f"storage/{name}" for name in _STORAGE]
        self.order = Order(self.names, [rows for part in self._parts for rows in part.rows], self._mixture(), seed)
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()
        self._most_pieces = max(part.plan.most_pieces for part in self._parts)
        self._told = [0] * len(_STORAGE)

    @property
    def all_shards(self) -> list[Shards]:
        """The shards of every manifest that a stage reads."""
        return [part.shards for part in self._parts]

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the manifest's shards: samples until every token was seen once where no weights are given."""
        return int(self.plan.rows.sum())

    def cursor(self, samples_done: int) -> Cursor:
        """The cursor that stands before sample `samples_done` of this order."""
        return Cursor(
            samples_done,
            manifest=self.shards.sha256,
            order=self._order_sha256,
            mixture=_digest(self._history(samples_done)),
            skips=self.skips.sha256(samples_done),
        )

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
        rows_per_step: int,
        micro_batch: int,
        rank: int,
        world: int,
        start: Cursor | None = None,
        prefetch: int = PREFETCH,
    ) -> Generator[Batch]:
        """Micro-batches of a rank, for ever.

        A step covers `rows_per_step` samples. Its micro-batch a holds, on rank r, the `micro_batch` samples from number
        (a * world + r) * micro_batch of the step on, so the samples of a step are the same for every world. The cursor
        of a batch counts finished steps only: it moves with the last micro-batch of a step.

        Raises ConfigError where `start` was taken on other shards or another order; see `check` to show the difference.
        """
        if rows_per_step % (micro_batch * world):
            raise ValueError(f"{rows_per_step=} is not a multiple of {micro_batch=} x {world=}")
        if start is not None:
            self.check(start)
        share = _Share(self, start.samples_done if start else 0, rows_per_step, micro_batch, rank, world)
        return _from_workers(share, self.workers, prefetch) if self.workers else _from_thread(share, prefetch)

    def epoch(self, *, micro_batch: int, rank: int = 0, world: int = 1, rows: int | None = None) -> Iterator[Batch]:
        """Micro-batches of a rank over the first `rows` samples (default: one epoch), for a loss on held-out text.

        Every rank gets the same number of batches; rows beyond the last sample are empty (segment and weight 0).
        """
        stop = self.rows_per_epoch if rows is None else min(rows, self.rows_per_epoch)
        for base in range(0, stop, micro_batch * world):
            first = base + rank * micro_batch
            yield self._batch(range(first, min(first + micro_batch, stop)), micro_batch, self.cursor(stop))

    def spans(self, sample: int) -> list[Span]:
        """The pieces of a sample, in the order of its row."""
        part, window, row = self._find(self.order.place(sample))
        here = window.pieces(row)
        pieces = (window.blocks[here], window.documents[here], window.starts[here], window.slots[here])
        left_out = self._left_out(part, window, row, sample)
        return [
            Span(*piece, weight=int(number not in left_out)) for number, piece in enumerate(zip(*pieces, strict=True))
        ]

    def shards_of(self, sample: int) -> Shards:
        """The shards that a sample is read from."""
        return self._part_of(self.order.place(sample).source).shards

    def step_samples(self, start: int, rows_per_step: int, step: int) -> Sequence[int]:
        """The samples of a step (0 is the first from sample `start` on), without those that are passed over."""
        first, stop = (self.skips.advance(start, number * rows_per_step) for number in (step, step + 1))
        if stop - first == rows_per_step:
            return range(first, stop)
        return [self.skips.advance(first, number) for number in range(rows_per_step)]

    def samples_of(self, manifest: str, block: int, document: int, before: int) -> list[int]:
        """The samples below `before` that hold any part of a document, in the order in which they are read.

        `manifest` is the sha256 of the shards that `block` is of, `document` a number within the block.
        """
        samples: list[int] = []
        for part in self._parts:
            if part.shards.sha256 != manifest:
                continue
            number = part.windows.holding(block)
            source = part.windows[number].source
            window = self._window(part, number)
            pieces = [
                piece
                for piece, place in enumerate(zip(window.blocks, window.documents, strict=True))
                if place == (block, document)
            ]
            within = number - part.windows.of_source(source).start
            for row in np.unique(np.searchsorted(window.ends, pieces, side="right")).tolist():
                samples += self.order.samples(part.first_source + source, within, row, before)
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
                tally = stage.part.plan.tallies[number]
                name = self.names[stage.part.first_source + number]
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

    def _open(self, manifest: str, cache: DiskCache | None) -> _Part:
        shards = Shards.open(manifest, cache)
        for part in self._parts:
            if part.shards.sha256 == shards.sha256:
                return part
        first = sum(len(part.shards.sources) for part in self._parts)
        part = _Part(len(self._parts), shards, Windows(shards, self.how), load_plan(shards, self.how), first)
        self._parts.append(part)
        return part

    def _names(self) -> list[str]:
        """Names of all sources; one of later shards that has the name of an earlier one carries their digest."""
        names: list[str] = []
        for part in self._parts:
            own = [source.name for source in part.shards.sources]
            names += [f"{name}@{part.shards.sha256[:8]}" if name in names else name for name in own]
        return names

    def _mixture(self) -> Mixture:
        stages = []
        for stage in self._stages:
            weights = [0] * len(self.names)
            weights[stage.part.first_source : stage.part.first_source + len(stage.weights)] = stage.weights
            stages.append(Stage(stage.first, tuple(weights)))
        return Mixture(stages)

    def _history(self, samples_done: int) -> tuple[str, ...]:
        """The stages that had a part in the samples done."""
        return tuple(stage.identity for stage in self._stages if stage.first < max(1, samples_done))

    def _part_of(self, source: int) -> _Part:
        return next(part for part in reversed(self._parts) if part.first_source <= source)

    def _find(self, place: Place) -> tuple[_Part, _Window, int]:
        part = self._part_of(place.source)
        number = part.windows.of_source(place.source - part.first_source).start + place.window
        return part, self._window(part, number), place.row

    def _batch(self, samples: Sequence[int], rows: int, cursor: Cursor) -> Batch:
        places = [self.order.place(sample) for sample in samples]
        found = [self._find(place) for place in places]
        left_out = [self._left_out(*found_row, sample) for found_row, sample in zip(found, samples, strict=True)]
        tokens = self._tokens(found, left_out)
        S = self.how.sequence_length
        packed, counts = [], [0] * len(self.names)
        for place, (part, window, row), without in zip(places, found, left_out, strict=True):
            here, held = window.pieces(row), tokens[part.number]
            at, slots = window.at[here], window.slots[here]
            arrays = [held.get(block, _NOTHING) for block in window.blocks[here]]
            counts[place.source] += sum(slots) - sum(slots[number] for number in without)
            for number in without:  # its tokens may not have been read, and must not be seen
                arrays[number], at[number] = np.zeros(S + 1, np.uint16), 0
            packed.append(Row(arrays, at, slots, tuple(without)))
        filled = fill(packed, rows, S)
        ends = np.cumsum(filled.slots_P)
        cu_seqlens_N = np.full(rows * (self._most_pieces + 1) + 1, rows * S, np.int32)
        cu_seqlens_N[0], cu_seqlens_N[1 : len(ends) + 1] = 0, ends
        return Batch(
            tokens_BS=torch.from_numpy(filled.tokens_BS),
            targets_BS=torch.from_numpy(filled.targets_BS),
            segments_BS=torch.from_numpy(filled.segments_BS),
            positions_BS=torch.from_numpy(filled.positions_BS),
            weights_BS=torch.from_numpy(filled.weights_BS),
            cu_seqlens_N=torch.from_numpy(cu_seqlens_N),
            longest=int(filled.slots_P.max()),
            counts_K=torch.from_numpy(np.array(counts + self._storage_counts(), dtype=np.int64)),
            cursor=cursor,
        )

    def _left_out(self, part: _Part, window: _Window, row: int, sample: int) -> list[int]:
        """Numbers of the pieces of a row whose documents are left out of a sample."""
        if not self.skips.entries:
            return []
        here = window.pieces(row)
        numbers = []
        for number, (block, document) in enumerate(zip(window.blocks[here], window.documents[here], strict=True)):
            without = self.skips.of_block(part.shards.sha256, block, sample)
            if without is None or document in without:
                numbers.append(number)
        return numbers

    def _tokens(
        self, found: Iterable[tuple[_Part, _Window, int]], left_out: Iterable[list[int]]
    ) -> list[dict[int, np.ndarray]]:
        """Of each part, the tokens of the blocks that some rows need, by block."""
        needed: list[set[int]] = [set() for _ in self._parts]
        for (part, window, row), without in zip(found, left_out, strict=True):
            blocks = window.blocks[window.pieces(row)]
            if without:
                blocks = [block for number, block in enumerate(blocks) if number not in without]
            needed[part.number].update(blocks)
        return [part.shards.tokens_of(sorted(blocks)) for part, blocks in zip(self._parts, needed, strict=True)]

    def _window(self, part: _Part, number: int) -> _Window:
        key = (part.number, number)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = self._pack(part, number)
            if len(self._windows) > _OPEN_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return window

    def _pack(self, part: _Part, number: int) -> _Window:
        _, first, stop = part.windows[number]
        lengths, counts = part.shards.lengths(first, stop), part.shards.documents_per_block(first, stop)
        rows = pack(lengths, self.how.sequence_length, self.how.packing)
        if len(rows) != part.plan.rows[number]:
            raise DataError(
                f"{plan_name(self.how)} beside {part.shards.manifest} gives window {number} {part.plan.rows[number]} "
                f"rows, but its documents fill {len(rows)}: remove the file, it is made again"
            )
        first_documents = np.cumsum(counts) - counts
        block_P = np.searchsorted(np.cumsum(counts), rows.documents_P, side="right")
        ends = np.cumsum(lengths)
        starts = ends - lengths
        at_P = starts[rows.documents_P] - starts[first_documents[block_P]] + rows.starts_P
        return _Window(
            blocks=(block_P + first).tolist(),
            documents=(rows.documents_P - first_documents[block_P]).tolist(),
            starts=rows.starts_P.tolist(),
            slots=rows.slots_P.tolist(),
            at=at_P.tolist(),
            ends=rows.ends_R.tolist(),
        )

    def _storage_counts(self) -> list[int]:
        """What storage has suffered since the batch before."""
        now = [sum(getattr(part.shards.files.counts, name) for part in self._parts) for name in _STORAGE]
        since = [count - before for count, before in zip(now, self._told, strict=True)]
        self._told = now
        return since


_STORAGE = ("retries", "refetched", "quarantined", "bytes_fetched")
_NOTHING = np.zeros(1, np.uint16)
_KEYS = {
    "seed": "seed",
    "sequence_length": "data.sequence_length",
    "packing": "data.packing",
    "window_blocks": "data.window_blocks",
}


@dataclass(frozen=True)
class _Part:
    """The shards of one manifest. Its sources are numbered from `first_source` on among those of all parts."""

    number: int
    shards: Shards
    windows: Windows
    plan: Plan
    first_source: int

    @property
    def rows(self) -> list[np.ndarray]:
        """Of each source, the rows of its windows."""
        return [self.plan.rows[self.windows.of_source(number)] for number in range(len(self.shards.sources))]

    def weights(self, given: Mapping[str, float]) -> tuple[int, ...]:
        """Whole weights of its sources: as given, else their rows. Raises ConfigError for a name that is none."""
        if not given:
            return tuple(tally.rows for tally in self.plan.tallies)
        names = [source.name for source in self.shards.sources]
        if unknown := sorted(given.keys() - set(names)):
            raise ConfigError(
                f"data.mixture gives a weight to {', '.join(unknown)}, but the sources of {self.shards.manifest} are "
                f"{', '.join(names)}"
            )
        return whole_weights(given, names)


@dataclass(frozen=True)
class _Stage:
    first: int
    part: _Part
    weights: tuple[int, ...]

    @functools.cached_property
    def identity(self) -> str:
        return json.dumps([self.first, self.part.shards.sha256, self.weights])

    def describe(self) -> dict[str, Any]:
        names = [source.name for source in self.part.shards.sources]
        weights = {name: weight for name, weight in zip(names, self.weights, strict=True) if weight}
        return {"first": self.first, "manifest": self.part.shards.sha256, "weights": weights}


class _Window(NamedTuple):
    """The pieces of a window side by side, in the order of its rows; `ends` are those of the rows."""

    blocks: list[int]
    documents: list[int]  # within their blocks
    starts: list[int]  # first slot within the document
    slots: list[int]
    at: list[int]  # first input among the tokens of the block
    ends: list[int]

    def pieces(self, row: int) -> slice:
        """The pieces of a row."""
        return slice(self.ends[row - 1] if row else 0, self.ends[row])


@functools.lru_cache(maxsize=4)
def _digest(texts: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _shown(entries: Sequence[object]) -> str:
    return json.dumps(entries) if entries else "none"


@dataclass(frozen=True)
class _Share(IterableDataset):
    """The micro-batches of one rank, or in a worker process of DataLoader every n-th of them."""

    stream: TokenStream
    first: int  # sample
    rows_per_step: int
    micro_batch: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[Batch | ConfigError | DataError]:
        worker = get_worker_info()
        return self.every(worker.num_workers, worker.id) if worker else self.every(1, 0)

    def every(self, stride: int, number: int) -> Iterator[Batch | ConfigError | DataError]:
        """Micro-batch `number` and each `stride`-th after it."""
        per_step = self.rows_per_step // (self.micro_batch * self.world)
        while True:
            step, part = divmod(number, per_step)
            samples = self.stream.step_samples(self.first, self.rows_per_step, step)
            done = self._done(step + (part == per_step - 1))
            first = (part * self.world + self.rank) * self.micro_batch
            try:
                batch = self.stream._batch(
                    samples[first : first + self.micro_batch], self.micro_batch, self.stream.cursor(done)
                )
            except (ConfigError, DataError) as error:
                yield error  # raised by the reader: DataLoader would bury the message in a worker's traceback
                return
            yield batch
            number += stride

    def _done(self, steps: int) -> int:
        """Samples done after so many steps: those before the last that was read, it included."""
        return self.stream.skips.advance(self.first, steps * self.rows_per_step - 1) + 1 if steps else self.first


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A scheduler or a keyboard signals the whole process group; the trainer needs its workers while it stops."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _raise_errors(item: Batch | ConfigError | DataError) -> Batch:
    if isinstance(item, Exception):
        raise item
    return item


def _from_thread(share: _Share, prefetch: int) -> Generator[Batch]:
    items = iter(share)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        ahead = deque(thread.submit(next, items) for _ in range(prefetch))
        while True:
            batch = _raise_errors(ahead.popleft().result())
            ahead.append(thread.submit(next, items))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _from_workers(share: _Share, workers: int, prefetch: int) -> Generator[Batch]:
    loader = DataLoader(
        share,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",  # a fork copies locks that threads of the backend or of W&B may hold
        prefetch_factor=prefetch,
        generator=torch.Generator(),  # else it draws a seed from torch's global one, and workers=0 does not
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for item in loader:
        yield _raise_errors(item)

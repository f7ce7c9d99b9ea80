"""What a run is never fed again: an append-only list, each entry with effect from a sample on.

Knows nothing of shards, files of a run or batches. An entry leaves out the targets of documents, which keep their place
with weight 0, or passes over a range of samples. So nothing is ever packed anew, and what was read before an entry was
made stays what it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Skip:
    """One entry.

    from_sample  the first sample it holds for
    manifest     sha256 of the shards that `block` is of; empty for a range of samples
    block        whose documents are left out; -1 for a range of samples
    documents    numbers within the block; empty for all of them, and then the block is not even read
    samples      first sample passed over and the one after the last; empty for documents
    """

    from_sample: int
    manifest: str = ""
    block: int = -1
    documents: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Skip:
        """An entry as a line of the list states it; what else the line tells people is left out."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {name: tuple(known.get(name, ())) for name in ("documents", "samples")})


class Skips:
    """The list, asked."""

    def __init__(self, entries: Iterable[Skip] = ()) -> None:
        self.entries = tuple(entries)
        self._ranges = sorted((entry.samples[0], entry.samples[1]) for entry in self.entries if entry.samples)
        self._blocks: dict[tuple[str, int], list[Skip]] = {}
        for entry in self.entries:
            if entry.block >= 0:
                self._blocks.setdefault((entry.manifest, entry.block), []).append(entry)

    def advance(self, sample: int, count: int) -> int:
        """The sample reached from `sample` after `count` samples that are not passed over; itself never one that is."""
        position = sample
        for first, stop in self._ranges:
            if stop <= position:
                continue
            if position + count < first:
                break
            count -= max(0, first - position)
            position = stop
        return position + count

    def passed(self, sample: int) -> int:
        """How many samples before this one are read, those passed over not counted."""
        passed_over = position = 0
        for first, stop in self._ranges:
            start = max(first, position)
            passed_over += max(0, min(stop, sample) - start)
            position = max(position, stop)
        return sample - passed_over

    def leaves_out(self, sample: int) -> bool:
        """Whether the sample is passed over."""
        return any(first <= sample < stop for first, stop in self._ranges)

    def of_block(self, manifest: str, block: int, sample: int) -> set[int] | None:
        """The documents of a block that are left out of a sample; None for all of them."""
        documents: set[int] = set()
        for entry in self._blocks.get((manifest, block), ()):
            if sample >= entry.from_sample:
                if not entry.documents:
                    return None
                documents.update(entry.documents)
        return documents

    def sha256(self, before: int) -> str:
        """Digest of the entries that may have had a part in samples before this one."""
        return (
            _digest(())
            if not self.entries
            else _digest(tuple(entry for entry in self.entries if entry.from_sample < before))
        )


@functools.lru_cache(maxsize=4)
def _digest(entries: tuple[Skip, ...]) -> str:
    return hashlib.sha256(json.dumps([vars(entry) for entry in entries], sort_keys=True).encode()).hexdigest()

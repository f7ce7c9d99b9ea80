"""Where in the shards is a document of this id: found without a catalogue of ids.

The documents of a source stand in the order of a hash of their ids (`shards.order_key`), so a binary search over the
first keys of blocks, which the indexes hold, finds the one block that can hold an id. A source that is in another order
is looked through.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.reader import Shards, Source
from data_pipeline.shards import order_key


def locate(shards: Shards, document: str) -> list[tuple[int, int]]:
    """(block, number within it) of every document of this id; sources do not share ids unless their users say so."""
    found = []
    for source in shards.sources:
        for block in _candidates(shards, source, document):
            ids = shards.ids(block)
            found += [(block, number) for number, name in enumerate(ids) if name == document]
    return found


def _candidates(shards: Shards, source: Source, document: str) -> Iterator[int]:
    """Blocks of a source that may hold the document."""
    first, stop = source.first_block, source.first_block + source.num_blocks
    if not source.sorted:
        yield from range(first, stop)
        return
    key = order_key(document)
    low, high = first, stop  # the first block whose key is greater lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        if shards.entry(middle).key > key:
            high = middle
        else:
            low = middle + 1
    if low > first:
        yield low - 1

"""Items some at a time, by their size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batched(
    items: Iterable[Item], size: Callable[[Item], int], least: int, most_items: int = sys.maxsize
) -> Iterator[list[Item]]:
    """The items in their order. A batch ends with the item that brings it to `least` in size, or to so many items."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= least or len(batch) >= most_items:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch

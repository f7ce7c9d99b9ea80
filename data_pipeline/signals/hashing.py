"""Sets and counts of hashes in compiled loops: open addressing with linear probing, in tables that loops share.

A table is an array of 64-bit hashes, 0 where it is free, of which a document uses the first `room(count)` places: so a
short document stays in the cache, and clearing a table costs in proportion to what is put into it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Array: TypeAlias = npt.NDArray[Any]

# Odd numbers that hashes are made with: so equal things that are hashed for two purposes differ.
OF_WORDS = np.uint64(0x9E3779B97F4A7C15)  # and lines and shingles; about 2**64 over the golden ratio
OF_RUNS = np.uint64(0xD6E8FEB86659FD93)  # of words
OF_STRETCHES = np.uint64(0x9FB21C651E98DF25)  # of letters
MIX = np.uint64(0xFF51AFD7ED558CCD)  # spreads sums over all bits, as in the finaliser of MurmurHash3

_LEAST_ROOM = 16


@njit(cache=True)
def room(count: int) -> int:
    """Places for so many hashes: a power of two that leaves half of them free."""
    places = _LEAST_ROOM
    while places < 2 * count:
        places *= 2
    return places


@njit(cache=True, inline="always")
def place(table: Array, places: int, hash_: np.uint64) -> np.int64:
    """Where a hash stands, or the free place where it belongs. 0 stands for free, so it is taken for 1."""
    mask = places - 1
    at = np.int64(hash_ >> np.uint64(20)) & mask
    while table[at] != np.uint64(0) and table[at] != hash_:
        at = (at + 1) & mask
    return at


@njit(cache=True, inline="always")
def nonzero(hash_: np.uint64) -> np.uint64:
    """The hash, with 0 taken for 1."""
    return hash_ if hash_ != np.uint64(0) else np.uint64(1)


@njit(cache=True)
def fill(keys: Array, table: Array) -> Array:
    """Put hashes into a table; returns where each stands."""
    places = np.zeros(keys.size, np.int64)
    for n in range(keys.size):
        hash_ = nonzero(keys[n])
        places[n] = place(table, table.size, hash_)
        table[places[n]] = hash_
    return places

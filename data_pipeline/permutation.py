"""Keyed permutations of 0..size-1 that are computed where they are needed, never stored or shuffled.

A Feistel network is a bijection of 2^k numbers whatever its round function; walking a cycle until it comes back below
`size` makes it one of any size (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, section 4). Sizes up
to 2^64. For mixing data, not for secrets.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 8


def permute(index_N: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where the permutation of range(size) that `key` names sends each index; uint64, shape as given."""
    index_N = np.asarray(index_N, dtype=np.uint64)
    half = max(1, -(-(size - 1).bit_length() // 2))
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8")
    image_N = _feistel(index_N, half, keys)
    while (outside_N := image_N > np.uint64(size - 1)).any():
        image_N[outside_N] = _feistel(image_N[outside_N], half, keys)
    return image_N


def _feistel(index_N: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64(2**half - 1)
    left_N, right_N = index_N >> np.uint64(half), index_N & mask
    for key in keys:
        left_N, right_N = right_N, left_N ^ (_mix(right_N ^ key) & mask)
    return (left_N << np.uint64(half)) | right_N


def _mix(x_N: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))

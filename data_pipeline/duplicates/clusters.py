"""Clusters: connected components of pairs, by steps over ranges of documents whose memory is that of a range or
of the largest component.

Where all pairs fit into one task it joins them at once. Else large-star and small-star take turns until nothing
changes: small-star links each document's smaller neighbours to the smallest of them, large-star its larger ones to the
smallest of all. In the end every document but the smallest of each component has one link, to that one. Kiveris et
al. 2014, "Connected Components in MapReduce and Beyond"; it takes about as many turns as the longest path has binary
digits. Large-star and the steps behind it take all edges of a document, or of a component, in one task: so a component
of n documents costs one of them some hundred bytes for each of the n, however small ranges are.

An edge is a record of two documents; its key is the larger, or either of them where a step needs both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from data_pipeline.duplicates.pairs import EDGE, FILE, distinct
from data_pipeline.engine import records
from data_pipeline.engine.records import Do

Array: TypeAlias = npt.NDArray[Any]

MEMBER = np.dtype([("key", np.uint64), ("document", np.uint64), ("other", np.uint64)])
MEMBERS = "members.npy"


@dataclass(frozen=True)
class Edges:
    """Task of `unite`, `small_star` and `large_star`: edges whose key is in a range."""

    edges: Sequence[Path]
    first: int
    stop: int


@dataclass(frozen=True)
class Gather:
    """Task of `gather`: edges and links of the documents of a range."""

    edges: Sequence[Path]
    links: Sequence[Path]
    first: int
    stop: int


def components(edges: Sequence[Path], do: Do, most: int) -> list[Path]:
    """Do the tasks of all steps; returns files of edges from each document to the smallest of its component."""
    turn = 0
    while True:
        ranges = records.balanced(edges, most)
        if len(ranges) == 1:
            return _files(do(f"unite-{turn}", unite, [Edges(edges, *ranges[0])]))
        done = do(f"small-star-{turn}", small_star, [Edges(edges, *bounds) for bounds in ranges])
        quiet = not any(facts["changed"] for _, facts in done)
        edges = _files(done)
        ranges = records.balanced(edges, most)
        done = do(f"large-star-{turn}", large_star, [Edges(edges, *bounds) for bounds in ranges])
        edges = _files(done)
        if quiet and not any(facts["changed"] for _, facts in done):
            return edges
        turn += 1


def unite(task: Edges, folder: Path) -> dict[str, Any]:
    """Link all documents of the range's edges to the smallest of their component among these edges."""
    edges = records.read(task.edges, task.first, task.stop, EDGE)
    documents_N, places = np.unique(np.concatenate([edges["key"], edges["other"]]), return_inverse=True)
    roots_N = _roots(places[: len(edges)], places[len(edges) :], documents_N.size)
    linked = np.flatnonzero(roots_N != np.arange(documents_N.size))
    return _write(folder, documents_N[linked], documents_N[roots_N[linked]])


def small_star(task: Edges, folder: Path) -> dict[str, Any]:
    """Link the smaller neighbours of each document, and itself, to the smallest. Keys are larger ends.

    Writes both directions. Returns `changed`, the edges that were not so.
    """
    edges = records.read(task.edges, task.first, task.stop, EDGE)
    smallest = _smallest(edges)
    changed = edges["other"] != smallest
    large = np.concatenate([edges["key"], edges["other"][changed]])
    small = np.concatenate([smallest, smallest[changed]])
    return _write(folder, np.concatenate([large, small]), np.concatenate([small, large])) | _changed(changed)


def large_star(task: Edges, folder: Path) -> dict[str, Any]:
    """Link the larger neighbours of each document to the smallest of all its neighbours and itself.

    Needs both directions, writes larger ends as keys. Returns `changed`, the edges that were not so.
    """
    edges = records.read(task.edges, task.first, task.stop, EDGE)
    smallest = np.minimum(_smallest(edges), edges["key"])
    larger = edges["other"] > edges["key"]
    changed = larger & (smallest != edges["key"])
    return _write(folder, edges["other"][larger], smallest[larger]) | _changed(changed)


def gather(task: Gather, folder: Path) -> dict[str, Any]:
    """Write edges (key the larger end) under the smallest document of their component."""
    edges = records.read(task.edges, task.first, task.stop, EDGE)
    links = records.read(task.links, task.first, task.stop, EDGE)
    links = distinct(links)
    members = np.empty(len(edges), MEMBER)
    members["key"] = links["other"][np.searchsorted(links["key"], edges["key"])]
    members["document"], members["other"] = edges["key"], edges["other"]
    records.write(folder / MEMBERS, members)
    return {"edges": len(members)}


def _files(done: list[tuple[Path, dict[str, Any]]]) -> list[Path]:
    return [folder / FILE for folder, _ in done]


def _changed(changed: npt.NDArray[np.bool_]) -> dict[str, Any]:
    return {"changed": int(changed.sum())}


def _write(folder: Path, keys: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]) -> dict[str, Any]:
    edges = np.empty(len(keys), EDGE)
    edges["key"], edges["other"] = keys, others
    edges = distinct(edges)
    records.save(folder / FILE, edges)
    return {"edges": len(edges)}


def _smallest(edges: records.Records) -> npt.NDArray[np.uint64]:
    """The smallest other end of each edge's key."""
    if not len(edges):
        return np.empty(0, np.uint64)
    begins = records.begins(edges["key"])
    counts = np.diff(np.append(begins, len(edges)))
    return np.repeat(np.minimum.reduceat(edges["other"], begins), counts)


@njit(cache=True, nogil=True)
def _roots(one: Array, other: Array, count: int) -> Array:
    """The smallest place that each of so many is joined with."""
    parents = np.arange(count)
    for e in range(one.size):
        a, b = one[e], other[e]
        while parents[a] != a:
            parents[a] = parents[parents[a]]
            a = parents[a]
        while parents[b] != b:
            parents[b] = parents[parents[b]]
            b = parents[b]
        if a < b:
            parents[b] = a
        else:
            parents[a] = b
    for n in range(count):  # a parent is never larger than its child
        parents[n] = parents[parents[n]]
    return parents

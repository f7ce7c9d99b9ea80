"""Who reads which rows where several hosts share a slice, as its links number the chips."""

from __future__ import annotations

import itertools

import pytest

from conf.exits import ConfigError
from trainer.backend.base import World
from trainer.backend.xla.feeders import feeder_of, reading
from trainer.backend.xla.region import Mesh

pytestmark = pytest.mark.xla


def hosts_of(x: int, y: int) -> tuple[list[list[int]], list[int]]:
    """A slice of v5e of x by y chips, of which a host has two by two.

    Gives the chips of each host, numbered host by host, and all of them in the order of the torus.
    """
    corners = itertools.product(range(0, x, 2), range(0, y, 2))
    places = [(a + i, b + j) for a, b in corners for i, j in itertools.product(range(2), range(2))]
    hosts = [list(range(first, first + 4)) for first in range(0, x * y, 4)]
    return hosts, sorted(range(x * y), key=lambda chip: places[chip])


@pytest.mark.parametrize(
    ("axes", "readers", "feeders"),
    [
        ((1, 16, 1), 4, 4),
        ((1, 8, 2), 4, 2),
        ((1, 4, 4), 2, 2),
        ((4, 1, 4), 2, 2),
        ((1, 2, 8), 2, 1),
        ((1, 1, 16), 1, 1),
    ],
)
def test_every_feeder_is_read_for_once(axes: tuple[int, int, int], readers: int, feeders: int) -> None:
    hosts, order = hosts_of(4, 4)
    mesh = Mesh(dict(zip(("replica", "fsdp", "tensor"), axes, strict=True)), (4, 4), order)
    of_hosts = [sorted({feeder_of(mesh, chip) for chip in chips}) for chips in hosts]
    worlds = [reading(of_hosts, host) for host in range(len(hosts))]
    assert {(world.size, len(of)) for world, of in zip(worlds, of_hosts, strict=True)} == {(readers, feeders)}
    read = {world.rank: of for world, of in zip(worlds, of_hosts, strict=True)}
    assert sorted(feeder for of in read.values() for feeder in of) == list(range(axes[0] * axes[1]))
    for (a, of_a), (b, of_b) in itertools.combinations(zip(worlds, of_hosts, strict=True), 2):
        assert (a.rank == b.rank) == (of_a == of_b)


def test_hosts_that_share_some_feeders_only_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"they would for the feeders \[\(0, 1\), \(1, 2\)\].*Choose a mesh.tensor"):
        reading([[0, 1], [1, 2]], 0)
    with pytest.raises(ConfigError, match=r"\[\(0,\), \(1, 2\)\]"):
        reading([[0], [1, 2]], 0)


def test_one_host_reads_all() -> None:
    assert reading([[0, 1, 2, 3]], 0) == World(0, 1)

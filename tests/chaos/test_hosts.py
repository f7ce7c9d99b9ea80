"""A promise of several hosts, tried on network namespaces: one dies without a word, is named, and replaced.

The short form of `tests.chaos.hosts`: its other scenarios, and times held against a bar, are for `make chaos`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import hosts

TIMEOUT = 5.0


@pytest.fixture(autouse=True)
def needs_hosts() -> None:
    if why := hosts.missing():
        pytest.skip(why)


def test_a_host_that_dies_is_named_and_replaced(tmp_path: Path) -> None:
    found = hosts.scenario_replaced_host(tmp_path, TIMEOUT)
    assert found["named"] == {
        "event": "hang",
        "ranks": [1],
        "host": "host-2",
        "why": "no heartbeat came from any process of that host: it is dead, or the link to it is cut",
    }, found["said"]
    assert found["events"] == 1
    assert TIMEOUT - 1 < found["detected_seconds"] < TIMEOUT + 5
    assert found["restarts"] == [("host-1", 76, "hang")]
    assert found["attempts"] == 2

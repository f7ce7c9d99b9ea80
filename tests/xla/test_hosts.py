"""Where the processes of several hosts meet."""

from __future__ import annotations

import pytest

from trainer.backend.xla.backend import meeting_point

pytestmark = pytest.mark.xla


@pytest.mark.parametrize(
    ("environment", "point"),
    [
        ({"MASTER_ADDR": "10.0.0.2"}, "tcp://10.0.0.2:29400"),
        ({"MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "1234"}, "tcp://10.0.0.2:1234"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "job-0.gem:8080"}, "tcp://job-0.gem:29400"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.7"}, "tcp://10.0.0.7:29400"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.7:8080", "MASTER_ADDR": "10.0.0.9"}, "tcp://10.0.0.9:29400"),
    ],
)
def test_hosts_meet_at_the_first(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], point: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert meeting_point() == point

"""The catalog of hardware: what its names stand for, and what is said of names that it does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf import schema
from conf.check import check
from conf.hardware import MACHINES, PEAK_BF16_FLOPS, SLICES, find, peak_bf16_flops, problem, tpu_chips

# From the tables of slices on docs.cloud.google.com/tpu/docs: name, chips, hosts.
PUBLISHED = [
    ("v4-8", 4, 1), ("v4-128", 64, 16), ("v5p-8", 4, 1), ("v5p-16", 8, 2), ("v5p-64", 32, 8), ("v5p-128", 64, 16),
    ("v5p-256", 128, 32), ("v5p-512", 256, 64), ("v5e-16", 16, 4), ("v5e-256", 256, 64), ("v6e-8", 8, 1),
    ("v6e-64", 64, 16), ("v6e-256", 256, 64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "chips", "hosts"), PUBLISHED)
def test_names_count_cores_or_chips_as_published(name: str, chips: int, hosts: int) -> None:
    found = find(name)
    assert found is not None
    assert (found.joined, found.hosts) == (chips, hosts)


def test_every_entry_has_figures_and_a_public_source() -> None:
    names = [*MACHINES, *(f"{name}-{slices.counted * slices.sizes[-1]}" for name, slices in SLICES.items())]
    assert len(names) >= 10
    for name in names:
        entry = find(name)
        assert entry is not None
        assert entry.source.startswith("https://")
        assert entry.chip.source.startswith("https://")
        assert 10e9 < entry.chip.memory_bytes < 200e9
        assert 100e12 < entry.chip.bf16_flops < 3000e12
        # Each is slower than the one before it, and none by so much that a unit (bits, both directions) is wrong.
        per_chip = entry.network / entry.joined
        assert 1 < entry.chip.memory_bandwidth / entry.chip.link_bandwidth < 20
        assert 5 < entry.chip.link_bandwidth / per_chip < 250


def test_chips_and_devices_have_one_peak() -> None:
    assert {MACHINES[name].chip.bf16_flops for name in MACHINES} <= set(PEAK_BF16_FLOPS.values())
    assert peak_bf16_flops("NVIDIA H100 80GB HBM3") == MACHINES["a3-mega"].chip.bf16_flops
    for unknown in ("Some GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA H200 NVL"):
        assert peak_bf16_flops(unknown) is None


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a3-mgea", "did you mean a3-mega?"),
        ("h100", "Known: a2-high"),
        ("v5p-500", "whose names count TensorCores; near it are v5p-384, v5p-512, v5p-640"),
        ("v5e-512", "whose names count chips; near it are v5e-64, v5e-128, v5e-256"),
        ("v5p-7", "near it are v5p-8, v5p-16"),
    ],
)
def test_an_unknown_name_is_refused_with_what_was_meant(name: str, told: str) -> None:
    (said,) = check(schema.Job(hardware=name))
    assert f"hardware={name}" in said
    assert told in said
    assert problem("a3-mega") is None


def test_chips_of_a_host_are_those_on_its_pci_bus(tmp_path: Path) -> None:
    bus = tmp_path / "devices"
    assert tpu_chips(bus) == 0  # no bus to look at
    for number, (vendor, device) in enumerate(
        [("0x1ae0", "0x0063"), ("0x1ae0", "0x0062"), ("0x1ae0", "0x006f"), ("0x1ae0", "0x0042"), ("0x10de", "0x0063")]
    ):
        (bus / f"0000:00:{number:02}.0").mkdir(parents=True)
        (bus / f"0000:00:{number:02}.0" / "vendor").write_text(vendor + "\n")
        (bus / f"0000:00:{number:02}.0" / "device").write_text(device + "\n")
    (bus / "0000:00:09.0").mkdir()  # nothing to read in it
    assert tpu_chips(bus) == 3  # Google has other devices, and others have that number

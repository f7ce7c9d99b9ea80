"""The catalog of hardware: chips, and the machines and slices that hold them; and the TPU chips of this host. Standard
library only.

Figures are those of the public pages named beside them, in decimal units where the page prints GB or Gbps. Bandwidths
are bytes per second in one direction; a page that adds both directions up is halved. FLOP/s are dense.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

# Dense bf16 FLOP/s of one device, as its data sheet states them without sparsity. Keys begin the name that torch gives.
PEAK_BF16_FLOPS = {
    "NVIDIA A100": 312e12,  # NVIDIA A100 Tensor Core GPU data sheet
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM; NVIDIA H100 Tensor Core GPU data sheet
    "NVIDIA H100 PCIe": 756e12,  # the same
    "NVIDIA H200": 989e12,  # NVIDIA H200 Tensor Core GPU data sheet
    "NVIDIA B200": 2250e12,  # HGX at 1,000 W; Blackwell architecture brief, read as quoted by glennklockwood.com
}


def peak_bf16_flops(device: str) -> float | None:
    """Peak FLOP/s of a device by its name; None where the catalog does not know it, or it is a part of one (MIG)."""
    if " MIG " in device or device.endswith(" NVL"):
        return None
    return next((flops for name, flops in PEAK_BF16_FLOPS.items() if device.startswith(name)), None)


@dataclass(frozen=True)
class Chip:
    """One device that a process drives.

    kind              cuda or xla
    memory_bytes      of high-bandwidth memory
    bf16_flops        dense FLOP/s at most
    memory_bandwidth  bytes/s of that memory
    link_bandwidth    bytes/s to the chips that fast links join it with, all links of the chip together
    source            page of memory and links; that of FLOP/s too for TPUs, else see PEAK_BF16_FLOPS
    """

    name: str
    kind: str
    memory_bytes: float
    bf16_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str


GPUS = "https://docs.cloud.google.com/compute/docs/gpus"
TPU = "https://docs.cloud.google.com/tpu/docs/"
SCALING_BOOK = "https://jax-ml.github.io/scaling-book/tpus/"  # links of v4, which its own page does not state

A100_40 = Chip("A100 40 GB", "cuda", 40e9, PEAK_BF16_FLOPS["NVIDIA A100"], 1.6e12, 300e9, GPUS)
A100_80 = Chip("A100 80 GB", "cuda", 80e9, PEAK_BF16_FLOPS["NVIDIA A100"], 1.9e12, 300e9, GPUS)
H100 = Chip("H100 SXM", "cuda", 80e9, PEAK_BF16_FLOPS["NVIDIA H100 80GB HBM3"], 3.35e12, 450e9, GPUS)
H200 = Chip("H200 SXM", "cuda", 141e9, PEAK_BF16_FLOPS["NVIDIA H200"], 4.8e12, 450e9, GPUS)
B200 = Chip("B200", "cuda", 180e9, PEAK_BF16_FLOPS["NVIDIA B200"], 8e12, 900e9, GPUS)
V4 = Chip("TPU v4", "xla", 32 * 2**30, 275e12, 1.2e12, 6 * 45e9, f"{TPU}v4 {SCALING_BOOK}")
V5E = Chip("TPU v5e", "xla", 16e9, 197e12, 819e9, 200e9, f"{TPU}v5e")
V5P = Chip("TPU v5p", "xla", 95 * 2**30, 459e12, 2765e9, 600e9, f"{TPU}v5p-training")
V6E = Chip("TPU v6e", "xla", 32e9, 918e12, 1600e9, 400e9, f"{TPU}v6e")


@dataclass(frozen=True)
class Hardware:
    """A machine, of which a job takes as many as it needs, or a slice of chips, which has a size.

    joined          chips that the fast links join: those of a machine, or of a slice
    network         bytes/s between such groups of chips, of all chips of one together
    chips_per_host  chips of one host, as multi-host jobs have them
    source          page of machine and network
    """

    name: str
    chip: Chip
    joined: int
    network: float
    chips_per_host: int
    source: str

    @property
    def hosts(self) -> int:
        """Hosts of one machine or slice."""
        return -(-self.joined // self.chips_per_host)


GPU_NETWORK = "https://docs.cloud.google.com/compute/docs/gpus/gpu-network-bandwidth"

MACHINES = {
    machine.name: machine
    for machine in (
        Hardware("a2-high", A100_40, 8, 100e9 / 8, 8, GPU_NETWORK),  # a2-highgpu-8g
        Hardware("a2-ultra", A100_80, 8, 100e9 / 8, 8, GPU_NETWORK),  # a2-ultragpu-8g
        Hardware("a3-high", H100, 8, 800e9 / 8, 8, GPU_NETWORK),  # a3-highgpu-8g, without the NIC of its host
        Hardware("a3-mega", H100, 8, 1600e9 / 8, 8, GPU_NETWORK),  # a3-megagpu-8g, without the NIC of its host
        Hardware("a3-ultra", H200, 8, 3200e9 / 8, 8, GPU_NETWORK),  # a3-ultragpu-8g, its NICs for GPUs only
        Hardware("a4", B200, 8, 3200e9 / 8, 8, GPU_NETWORK),  # a4-highgpu-8g, the same
    )
}


@dataclass(frozen=True)
class Slices:
    """How the slices of one TPU generation are named and sized.

    counted    what the number in a name counts, per chip: names of v4 and v5p count TensorCores, of which a chip has 2
    sizes      chips of the slices that there are
    network    bytes/s of one chip between slices
    """

    chip: Chip
    counted: int
    sizes: tuple[int, ...]
    network: float


_SMALL_3D, _CUBE = (4, 8, 16, 32), 64  # larger slices of a 3D torus are made of cubes of 4 x 4 x 4 chips
_2D = (1, 4, 8, 16, 32, 64, 128, 256)

SLICES = {
    "v4": Slices(V4, 2, (*_SMALL_3D, *range(_CUBE, 4096 + 1, _CUBE)), 6.25e9),  # network: scaling book
    "v5e": Slices(V5E, 1, _2D, 6.4e12 / 8 / 256),
    "v5p": Slices(V5P, 2, (*_SMALL_3D, *range(_CUBE, 6144 + 1, _CUBE)), 50e9 / 8),
    "v6e": Slices(V6E, 1, _2D, 25.6e12 / 8 / 256),
}
TPU_TYPES = {"v4": V4, "v5litepod": V5E, "v5p": V5P, "v6e": V6E}  # as a TPU names itself
_SLICE = re.compile(rf"({'|'.join(SLICES)})-(\d+)")


def find(name: str) -> Hardware | None:
    """The entry of a machine (`a3-mega`) or slice (`v5p-512`, which has 256 chips); None where there is none."""
    if name in MACHINES:
        return MACHINES[name]
    match = _SLICE.fullmatch(name)
    if match is None:
        return None
    slices, number = SLICES[match[1]], int(match[2])
    chips = number // slices.counted
    if number % slices.counted or chips not in slices.sizes:
        return None
    # A slice of one host may hold 8 chips of v5e and v6e; those of several hosts hold 4 on each.
    return Hardware(
        name, slices.chip, chips, chips * slices.network, chips if chips <= 8 and slices.counted == 1 else 4,
        slices.chip.source,
    )  # fmt: skip


def problem(name: str) -> str | None:
    """What is wrong with the name of an entry, and what was meant; None where there is such an entry."""
    if find(name) is not None:
        return None
    if match := _SLICE.fullmatch(name):
        slices = SLICES[match[1]]
        named = sorted((size * slices.counted for size in slices.sizes), key=lambda n: abs(n - int(match[2])))
        near = ", ".join(f"{match[1]}-{number}" for number in sorted(named[:3]))
        unit = "TensorCores" if slices.counted > 1 else "chips"
        return f"hardware={name} is no slice of {slices.chip.name}, whose names count {unit}; near it are {near}"
    known = [*MACHINES, *(f"{generation}-{slices.counted * 64}" for generation, slices in SLICES.items())]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return (
        f"hardware={name} is not in the catalog: {hint}Known: {', '.join(MACHINES)}, and slices such as "
        + ", ".join(known[len(MACHINES) :])
    )


# PCI vendor and devices, of the lists that torch_xla 2.9.0 and jax 0.7.1 hold: v2 and v3, v4, v5p, v5e, v6e, 7x.
GOOGLE = "0x1ae0"
TPUS = ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


def tpu_chips(devices: Path = Path("/sys/bus/pci/devices")) -> int:
    """TPU chips of this host, as its PCI bus shows them to whoever looks: no driver or library is loaded."""
    return sum(_read(device / "vendor") == GOOGLE and _read(device / "device") in TPUS for device in devices.glob("*"))


def on_tpu() -> bool:
    """Whether this host has TPU chips, or whoever started us says that torch_xla will find some."""
    return tpu_chips() > 0 or os.environ.get("PJRT_DEVICE") == "TPU"


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # a device that went away while we looked
        return ""

"""The names that libtpu has for slices of the catalog: `v5e-256` is its 16 x 16 chips, `v5p-512` its 4 x 8 x 8."""

from __future__ import annotations

from dataclasses import dataclass

from conf.exits import ConfigError
from conf.hardware import SLICES, Hardware

_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_DEEP = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
_CUBE = 4  # chips along each edge of the blocks that larger slices of a 3D torus are made of


@dataclass(frozen=True)
class Topology:
    """What libtpu is asked to describe. `arguments` are further ones of `jax.experimental.topologies`."""

    name: str
    chips: int
    arguments: dict[str, int | str | list[int]]

    @property
    def torus(self) -> tuple[int, ...]:
        """Slices, if there are several, and the sizes of the dimensions of one."""
        sizes = [int(size) for size in self.name.partition(":")[2].split("x")]
        slices = int(str(self.arguments.get("num_slices", 1)))
        return tuple(size for size in (slices, *sizes) if size > 1) or (1,)


def topology_of(hardware: Hardware, slices: int = 1) -> Topology:
    """That of so many slices side by side. Raises ConfigError for what is no TPU, or for a number of slices below 1."""
    generation = hardware.name.partition("-")[0]
    if generation not in SLICES:
        raise ConfigError(
            f"hardware={hardware.name} is no TPU slice, so libtpu cannot compile for it: name one, such as v5e-256"
        )
    if slices < 1:
        raise ConfigError(f"launch.slices={slices} must be at least 1")
    arguments: dict[str, int | str | list[int]] = {}
    if slices > 1:
        arguments["num_slices"] = slices
    flat = SLICES[generation].counted == 1
    shape = _FLAT[hardware.joined] if flat else _DEEP.get(hardware.joined) or _cubes(hardware.joined)
    if hardware.chips_per_host != 4:  # one host holds all chips of a slice of 1, 4 or 8
        arguments["chips_per_host_bounds"] = [*shape, 1]
    if generation == "v4":
        arguments["chip_config_name"] = "megacore"  # both TensorCores of a chip as one device, as jobs run
    return Topology(f"{generation}:{'x'.join(map(str, shape))}", hardware.joined * slices, arguments)


def _cubes(chips: int) -> tuple[int, int, int]:
    """The edges, in ascending order, of the most compact block of so many chips that is made of cubes."""
    cubes = chips // _CUBE**3
    edges = min(
        ((a, b, cubes // a // b) for a in range(1, cubes + 1) if cubes % a == 0 for b in _divisors(cubes // a)),
        key=lambda sides: (sum(sides), sorted(sides)),
    )
    a, b, c = sorted(_CUBE * edge for edge in edges)
    return a, b, c


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]

"""Slices of chips: their grid, hosts and names, ours (`v5p:8x8x8`) and those of the cloud (`v5p-1024`)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from qwenvl_jax.chips.cloud import CLOUD, CloudNames
from qwenvl_jax.chips.kinds import CHIPS, Chip
from qwenvl_jax.runtime.errors import UserError, nearest

# Chips of one virtual machine in slices of several [cloud]; two such machines share a host on v5e and v6e.
CHIPS_PER_HOST = 4

_NAME = re.compile(r"(\w+):(\d{1,4}(?:x\d{1,4})*)(?:@(\d{1,4}))?", re.ASCII)
_CLOUD_NAME = re.compile(r"([a-z]\w*)-(\d{1,40})(?:@(\d{1,4}))?", re.ASCII)
_EXAMPLES = "v5p:8x8x8, v5e:16x16, or v5p:8x8x8@4 for four slices"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind: `shape` is the grid of chips of one slice."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As on the command line, e.g. "v5p:8x8x8@4"."""
        return f"{self.chip.kind}:{self.grid}" + (f"@{self.slices}" if self.slices > 1 else "")

    @property
    def grid(self) -> str:
        """The chips of one slice as the cloud writes them, e.g. "8x8x8"."""
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        """Number of chips of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def chips_per_host(self) -> int:
        """Chips of one virtual machine: 4, except for a single chip and for 2x4, which is one machine of 8 chips."""
        chips = math.prod(self.shape)
        whole = chips in self.cloud.machines and self.shape in ((1,) * len(self.shape), (2, 4))
        return chips if whole else CHIPS_PER_HOST

    @property
    def hosts_per_slice(self) -> int:
        """Number of virtual machines of one slice."""
        return -(-math.prod(self.shape) // self.chips_per_host)

    @property
    def hosts(self) -> int:
        """Number of virtual machines of all slices."""
        return self.hosts_per_slice * self.slices

    @property
    def cloud(self) -> CloudNames:
        """The names that the cloud has for the chip."""
        return CLOUD[self.chip.kind]

    @property
    def machine_type(self) -> str:
        """The machine type of its virtual machines, on Compute Engine and GKE."""
        return self.cloud.machines[self.chips_per_host]

    @property
    def accelerator_type(self) -> str:
        """The accelerator type of one slice, e.g. "v5p-1024"; empty if that name means another grid."""
        chips = math.prod(self.shape)
        if standard_grid(self.chip.kind, chips) != self.shape:
            return ""
        return f"{self.cloud.prefix}-{chips * self.cloud.cores}"

    @property
    def description(self) -> str:
        """One line that says what the name means, for commands that take either kind of name."""
        cloud_name = self.accelerator_type or "a grid that no accelerator type names"
        chips = f"{self.chips} chip" + "s" * (self.chips > 1)
        hosts = f"{self.hosts} host" + "s" * (self.hosts > 1)
        one = f"{chips} on {hosts} ({cloud_name}, {self.machine_type})"
        return f"{self.name}: {one}" if self.slices == 1 else f"{self.name}: {self.slices} slices, {one}"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which axes of the grid are rings."""
        return tuple(size % self.chip.wrap_multiple == 0 for size in self.shape)

    def check_rentable(self) -> None:
        """Raises UserError if the cloud has no slice of this grid, e.g. `v5p:1x1x1`."""
        chips = math.prod(self.shape)
        smallest = "x".join(map(str, self.cloud.smallest))
        if chips > self.cloud.largest:
            raise UserError(
                f"a slice of {self.chip.kind} has at most {self.cloud.largest} chips, not {chips} as in {self.name}; "
                f"take several slices, e.g. --topology={self.chip.kind}:{self.grid}@2 with a smaller grid"
            )
        if chips == 1 and 1 in self.cloud.machines:
            return
        if any(side < least for side, least in zip(self.shape, self.cloud.smallest, strict=True)):
            one = " or one chip" if 1 in self.cloud.machines else ""
            raise UserError(f"the smallest slice of {self.chip.kind} is {smallest}{one}, not {self.grid}; take that")
        if list(self.shape) != sorted(self.shape) and chips > CHIPS_PER_HOST:
            ordered = "x".join(map(str, sorted(self.shape)))
            raise UserError(
                f"the cloud writes the sides of a slice in ascending order, so write {self.chip.kind}:{ordered} for "
                f"{self.name}"
            )

    def compiler_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `jax.experimental.topologies.get_topology_desc`."""
        one_chip = math.prod(self.shape) == 1
        wraps = (*self.wraps, False)[:3]
        return {
            "platform": "tpu",
            "topology_name": f"{self.chip.compiler_kind}:{self.grid}",
            "chip_config_name": self.chip.compiler_config,
            "chips_per_host_bounds": (1, 1, 1) if one_chip else (2, 2, 1),
            "wrap": wraps,
            "num_slices": self.slices,
        }


def parse_topology(name: str) -> Topology:
    """`kind:AxB[xC][@slices]`, or an accelerator type of the cloud with `[@slices]`, to a topology.

    Raises:
      UserError: naming the valid form.
    """
    cloud_match = _CLOUD_NAME.fullmatch(name.strip())
    if cloud_match:
        return _from_accelerator_type(name, cloud_match[1], int(cloud_match[2]), int(cloud_match[3] or 1))
    match = _NAME.fullmatch(name.strip())
    if not match:
        raise UserError(f"the topology {name!r} has not the form KIND:AxB[xC][@SLICES]; write e.g. {_EXAMPLES}")
    kind = match[1]
    grid = tuple(int(size) for size in match[2].split("x"))
    slices = int(match[3] or 1)
    if kind not in CHIPS:
        raise UserError(
            f"the topology {name!r} names a chip that is not one of {', '.join(CHIPS)}{nearest(kind, CHIPS)}"
        )
    chip = CHIPS[kind]
    if len(grid) != chip.torus_axes:
        sides = "AxBxC" if chip.torus_axes == 3 else "AxB"
        raise UserError(f"a slice of {kind} has {chip.torus_axes} axes, so write {kind}:{sides}, not {name!r}")
    if min(grid) < 1 or slices < 1:
        raise UserError(f"the sides and slices of the topology {name!r} must be positive; write e.g. {_EXAMPLES}")
    for side in grid:
        if side not in (1, 2) and (side % 4 if chip.torus_axes == 3 else side not in (4, 8, 16)):
            sizes = "1, 2 or a multiple of 4" if chip.torus_axes == 3 else "1, 2, 4, 8 or 16"
            raise UserError(f"a side of a slice of {kind} is {sizes} chips long, not {side} as in {name!r}; change it")
    return Topology(chip, grid, slices)


def standard_grid(kind: str, chips: int) -> tuple[int, ...] | None:
    """The grid that an accelerator type of so many chips means: the one with the shortest sides, in ascending order.

    On three axes, slices of more than 32 chips consist of cubes of 4x4x4.
    """
    if CHIPS[kind].torus_axes == 2:
        grids = [(a, b) for a, b in itertools.product((1, 2, 4, 8, 16), repeat=2) if a <= b <= 2 * a and a * b == chips]
        return grids[0] if grids and grids[0] != (1, 2) else None
    small = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
    if chips in small or chips % 64 or chips <= 0:
        return small.get(chips)
    a, b, c = min(_factors(chips // 64), key=lambda sides: (sum(sides), sides))
    return (4 * a, 4 * b, 4 * c)


def _factors(number: int) -> Iterator[tuple[int, int, int]]:
    """All triples of ascending factors of a number."""
    for a in range(1, round(number ** (1 / 3)) + 1):
        if number % a == 0:
            rest = number // a
            yield from ((a, b, rest // b) for b in range(a, math.isqrt(rest) + 1) if rest % b == 0)


def _from_accelerator_type(name: str, prefix: str, count: int, slices: int) -> Topology:
    """The topology of `PREFIX-COUNT`, which counts cores or chips, whichever the cloud counts for the chip."""
    kinds = {names.prefix: kind for kind, names in CLOUD.items()} | {kind: kind for kind in CLOUD}
    if prefix not in kinds:
        known = [names.prefix for names in CLOUD.values()]
        raise UserError(
            f"the topology {name!r} names an accelerator type that does not begin with one of "
            f"{', '.join(known)}{nearest(prefix, known)}"
        )
    kind = kinds[prefix]
    names = CLOUD[kind]
    chips, rest = divmod(count, names.cores)
    grid = None if rest or chips > names.largest else standard_grid(kind, chips)
    if grid is None or slices < 1:
        counted = "TensorCores, two per chip" if names.cores == 2 else "chips"
        raise UserError(
            f"there is no slice {name!r}; the number after {names.prefix} counts {counted}, so write e.g. "
            f"{_largest_examples(kind)}, or give the grid as in {_EXAMPLES}"
        )
    return Topology(CHIPS[kind], grid, slices)


def _largest_examples(kind: str) -> str:
    """Two accelerator types of a chip."""
    names = CLOUD[kind]
    return " or ".join(f"{names.prefix}-{chips * names.cores}" for chips in (16, 256))

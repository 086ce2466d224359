"""Chips and pod slices: what `plan` assumes about the hardware, in one table that its output prints.

Units: operations and bytes per second, bytes, hertz; bandwidths of links are one way. Sources of the constants:

  [cloud]   Google Cloud TPU documentation, system architecture pages of v4, v5e, v5p and v6e
  [scaling] "How to Scale Your Model", chapter 2 (https://jax-ml.github.io/scaling-book/tpus): ring collectives, link
            and data-centre bandwidths as they are reached in practice
  [clock]   the rate at which the matrix units give the peak (v5e: 4 units * 128^2 * 2 * 1.5 GHz = 197 TFLOP/s)
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from qwenvl_jax.runtime.errors import UserError, nearest

GIB = 2**30

# Share of the peak that attention kernels reach. The compiler says nothing of what goes on inside a Pallas kernel.
KERNEL_EFFICIENCY = 0.5


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip.

    Attributes:
      kind: name on the command line.
      peak_flops: dense bfloat16 operations per second [cloud].
      hbm_bytes: memory [cloud]; the compiler keeps up to 1 % of it for itself.
      hbm_bandwidth: bytes per second [cloud].
      clock: hertz, turns the compiler's cycles into seconds [clock].
      link_bandwidth: bytes per second of one ICI link, one way [scaling].
      dcn_bandwidth: bytes per second of one chip's share of its host's network, one way [scaling].
      torus_axes: 2 or 3.
      wrap_multiple: an axis whose length is a multiple of this closes into a ring (cubes of 4 on v4 and v5p by
        optical switches, whole sides of 16 on v5e and v6e) [cloud].
      price: US dollars per chip and hour, list price on demand in the cheapest US region; yours will differ.
      compiler_kind, compiler_config: how libtpu calls it.
    """

    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    clock: float
    link_bandwidth: float
    dcn_bandwidth: float
    torus_axes: int
    wrap_multiple: int
    price: float
    compiler_kind: str
    compiler_config: str


CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1.228e12, 1.05e9, 45e9, 6.25e9, 3, 4, 3.22, "v4", "megacore"),
        Chip("v5e", 197e12, 16 * GIB, 0.819e12, 1.5e9, 45e9, 3.125e9, 2, 16, 1.20, "v5e", "default"),
        Chip("v5p", 459e12, 95 * GIB, 2.765e12, 1.75e9, 90e9, 6.25e9, 3, 4, 4.20, "v5", "megacore"),
        Chip("v6e", 918e12, 32 * GIB, 1.640e12, 1.75e9, 90e9, 12.5e9, 2, 16, 2.70, "v6e", "default"),
    )
}

CHIPS_PER_HOST = 4

# What the prediction rests on besides the table of chips; printed by `plan`.
ASSUMPTIONS = (
    ("matrix products, roofline", "100 % of the peak, or their HBM bytes at 100 % of the bandwidth if that is longer"),
    ("matrix products, cycles", "the compiler's `estimated_cycles` at the clock, same bound by HBM"),
    ("everything else on chip", "its HBM bytes at 100 % of the bandwidth"),
    ("copies between HBM and VMEM", "asynchronous, one after another, at 100 % of the HBM bandwidth"),
    ("Pallas attention kernels", f"{KERNEL_EFFICIENCY:.0%} of the peak; skipped blocks of a causal mask not counted"),
    ("collectives within a slice", "ring over every torus axis that the group spans, both ways where it wraps"),
    ("asynchronous collectives", "run beside computation, one at a time; exposed is what their end waits for"),
    ("collectives between slices", "ring over the slices at the chips' share of the data-centre network"),
    ("not seen", "launch gaps, contention of DMA engines, input stalls, checkpoints, restarts"),
)

_NAME = re.compile(r"(\w+):(\d+(?:x\d+)*)(?:@(\d+))?")
_EXAMPLES = "v5p:8x8x8, v5e:16x16, or v5p:8x8x8@4 for four slices"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind: `shape` is the grid of chips of one slice."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        grid = "x".join(map(str, self.shape))
        return f"{self.chip.kind}:{grid}" + (f"@{self.slices}" if self.slices > 1 else "")

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def hosts(self) -> int:
        return -(-self.chips // CHIPS_PER_HOST)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which axes of the grid are rings."""
        return tuple(size % self.chip.wrap_multiple == 0 for size in self.shape)

    def compiler_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `jax.experimental.topologies.get_topology_desc`."""
        grid = "x".join(map(str, self.shape))
        one_chip = math.prod(self.shape) == 1
        wraps = (*self.wraps, False)[:3]
        return {
            "platform": "tpu",
            "topology_name": f"{self.chip.compiler_kind}:{grid}",
            "chip_config_name": self.chip.compiler_config,
            "chips_per_host_bounds": (1, 1, 1) if one_chip else (2, 2, 1),
            "wrap": wraps,
            "num_slices": self.slices,
        }


def parse_topology(name: str) -> Topology:
    """`kind:AxB[xC][@slices]` to a topology.

    Raises:
      UserError: naming the valid form.
    """
    match = _NAME.fullmatch(name.strip())
    if not match:
        raise UserError(f"the topology {name!r} has not the form KIND:AxB[xC][@SLICES]; write e.g. {_EXAMPLES}")
    kind, grid, slices = match[1], tuple(int(size) for size in match[2].split("x")), int(match[3] or 1)
    if kind not in CHIPS:
        raise UserError(f"the topology {name!r} names none of the chips {', '.join(CHIPS)}{nearest(kind, CHIPS)}")
    chip = CHIPS[kind]
    if len(grid) != chip.torus_axes:
        sides = "AxBxC" if chip.torus_axes == 3 else "AxB"
        raise UserError(f"a slice of {kind} has {chip.torus_axes} axes, so write {kind}:{sides}, not {name!r}")
    if min(grid) < 1 or slices < 1:
        raise UserError(f"the sides and slices of the topology {name!r} must be positive; write e.g. {_EXAMPLES}")
    return Topology(chip, grid, slices)


def chip_rows() -> list[tuple[str, ...]]:
    """The table of chips for people: kind, peak, HBM, bandwidth, clock, links, network, price."""
    return [
        (
            chip.kind,
            f"{chip.peak_flops / 1e12:.0f}",
            f"{chip.hbm_bytes / GIB:.0f}",
            f"{chip.hbm_bandwidth / 1e9:.0f}",
            f"{chip.clock / 1e9:.2f}",
            f"{chip.link_bandwidth / 1e9:.0f} x {2 * chip.torus_axes}",
            f"{chip.dcn_bandwidth / 1e9:.2f}",
            f"{chip.price:.2f}",
        )
        for chip in CHIPS.values()
    ]


CHIP_COLUMNS = (
    "chip",
    "bf16 peak, TFLOP/s",
    "HBM, GiB",
    "HBM, GB/s",
    "clock, GHz",
    "ICI links, GB/s one way",
    "network, GB/s",
    "price, $/h",
)


def read_prices(values: Any) -> dict[str, float]:
    """Prices per chip and hour from a JSON object such as {"v5p": 2.94}; chips it leaves out keep their list price.

    Raises:
      UserError: if it is something else, names an unknown chip or a negative price.
    """
    if not isinstance(values, dict):
        raise UserError('the price table must be a JSON object such as {"v5p": 2.94}')
    prices = {kind: chip.price for kind, chip in CHIPS.items()}
    for kind, price in values.items():
        if kind not in prices:
            raise UserError(f"the price table names {kind!r}, none of {', '.join(CHIPS)}{nearest(kind, CHIPS)}")
        if isinstance(price, bool) or not isinstance(price, int | float) or price < 0:
            raise UserError(f"the price of {kind} must be dollars per chip and hour, not {price!r}")
        prices[kind] = float(price)
    return prices

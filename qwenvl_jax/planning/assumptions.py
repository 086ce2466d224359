"""The assumptions of a prediction beyond the schedule of the compiler; `plan` prints them with the table of chips."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.chips import CHIPS, GIB
from qwenvl_jax.runtime.errors import UserError, nearest

# Share of the peak that attention kernels reach. The compiler does not estimate what happens inside a Pallas kernel.
KERNEL_EFFICIENCY = 0.5

# Dollars of what is no TPU chip: a core-hour, a GB stored for a month, an hour of an H200 without its cores; assumed.
SERVICES = {"core": 0.05, "storage": 0.02, "h200": 10.0}

LARGEST_PRICE = 1e6  # dollars; no sum of costs overflows

ASSUMPTIONS = (
    ("matrix products, roofline", "100 % of the peak, or their HBM bytes at 100 % of the bandwidth if that is longer"),
    ("matrix products, cycles", "the compiler's `estimated_cycles` at the clock rate, with the same HBM bound"),
    ("all other operations", "their HBM bytes at 100 % of the bandwidth"),
    ("copies between HBM and VMEM", "asynchronous, one after another, at 100 % of the HBM bandwidth"),
    ("Pallas attention kernels", f"{KERNEL_EFFICIENCY:.0%} of the peak, without blocks that a causal mask skips"),
    ("copies between HBM and the host", "asynchronous, one after another each way, over PCIe"),
    ("collectives within a slice", "ring over every torus axis that the group spans, both ways if the axis wraps"),
    ("asynchronous collectives", "one at a time during computation; the time the cores wait for their end is exposed"),
    ("collectives on SparseCores", "as fast as others, during computation; their HBM traffic is not modelled"),
    ("collectives between slices", "ring over the slices at the chips' share of the data-centre network"),
    ("not modelled", "launch gaps, contention of DMA engines, input stalls, checkpoints, restarts"),
)


def chip_rows() -> list[tuple[str, ...]]:
    """The printed table of chips, with the columns `CHIP_COLUMNS`."""
    return [
        (
            chip.kind,
            f"{chip.peak_flops / 1e12:.0f}",
            f"{chip.hbm_bytes / GIB:.0f}",
            f"{chip.hbm_bandwidth / 1e9:.0f}",
            f"{chip.clock / 1e9:.2f}",
            f"{chip.link_bandwidth / 1e9:.0f} x {2 * chip.torus_axes}",
            f"{chip.dcn_bandwidth / 1e9:.2f}",
            f"{chip.host_bandwidth / 1e9:.0f}",
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
    "PCIe, GB/s one way",
    "price, $/h",
)


def read_prices(values: Any) -> dict[str, float]:
    """Prices in dollars per chip and hour.

    Args:
      values: a JSON object such as {"v5p": 2.94}; chips that it does not name have their list price. It may also name
        `SERVICES`.

    Raises:
      UserError: if the value is not such an object, or names an unknown chip, or a price is no amount of dollars.
    """
    if not isinstance(values, dict):
        raise UserError('the price table must be a JSON object such as {"v5p": 2.94}')
    prices = {kind: chip.price for kind, chip in CHIPS.items()} | SERVICES
    for kind, price in values.items():
        if kind not in prices:
            raise UserError(
                f"the price table names {kind!r}, which is not one of {', '.join(prices)}{nearest(kind, prices)}"
            )
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price <= LARGEST_PRICE:
            raise UserError(f"the price of {kind} must be dollars, for a chip per hour, and not {price!r:.40}")
        prices[kind] = float(price)
    return prices

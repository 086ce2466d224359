"""What a prediction assumes beyond the compiler's schedule; `plan` prints it beside the table of chips."""

from __future__ import annotations

from typing import Any

from qwenvl_jax.chips import CHIPS, GIB
from qwenvl_jax.runtime.errors import UserError, nearest

# Share of the peak that attention kernels reach. The compiler says nothing of what goes on inside a Pallas kernel.
KERNEL_EFFICIENCY = 0.5


# What the prediction rests on besides the table of chips; printed by `plan`.
ASSUMPTIONS = (
    ("matrix products, roofline", "100 % of the peak, or their HBM bytes at 100 % of the bandwidth if that is longer"),
    ("matrix products, cycles", "the compiler's `estimated_cycles` at the clock, same bound by HBM"),
    ("everything else on chip", "its HBM bytes at 100 % of the bandwidth"),
    ("copies between HBM and VMEM", "asynchronous, one after another, at 100 % of the HBM bandwidth"),
    ("Pallas attention kernels", f"{KERNEL_EFFICIENCY:.0%} of the peak; skipped blocks of a causal mask not counted"),
    ("copies between HBM and the host", "asynchronous, one after another each way, over PCIe"),
    ("collectives within a slice", "ring over every torus axis that the group spans, both ways where it wraps"),
    ("asynchronous collectives", "run beside computation, one at a time; exposed is what their end waits for"),
    ("collectives on SparseCores", "as fast as others, beside the cores; their part of the HBM bandwidth is not seen"),
    ("collectives between slices", "ring over the slices at the chips' share of the data-centre network"),
    ("not seen", "launch gaps, contention of DMA engines, input stalls, checkpoints, restarts"),
)


def chip_rows() -> list[tuple[str, ...]]:
    """The table of chips for people, with the columns of `CHIP_COLUMNS`."""
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

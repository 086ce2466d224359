"""Zones that have a kind of chip, and what a chip costs there per hour.

Zones: "TPU regions and zones" (https://docs.cloud.google.com/tpu/docs/regions-zones) as of November 2026; those outside
North America were not compared with that page again. Which of them have room for a project, only the cloud knows.

Prices: the list price on demand in the cheapest region of the United States (`qwenvl_jax/chips/kinds.py`), used for all
regions of the United States. For other regions, and for spot, reserved and flex-start, no price is published in a form
that we could check: `--prices` gives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.job import CAPACITIES
from qwenvl_jax.chips import CHIPS
from qwenvl_jax.runtime.errors import UserError, nearest

ZONES = {
    "v4": ("us-central2-b",),
    "v5e": ("us-central1-a", "us-south1-a", "us-west1-c", "us-west4-a", "europe-west4-b", "asia-southeast1-b"),
    "v5p": ("us-central1-a", "us-east5-a", "europe-west4-b"),
    "v6e": (
        *("us-central1-b", "us-east1-d", "us-east5-a", "us-east5-b", "us-south1-ai1b"),
        *("europe-west4-a", "asia-northeast1-b", "southamerica-west1-a"),
    ),
    "tpu7x": ("us-central1-c", "us-central1-ai1a"),
}

Prices = Mapping[str, float]


def region_of(zone: str) -> str:
    """The region of a zone."""
    return zone.rpartition("-")[0]


def price(kind: str, zone: str, capacity: str, given: Prices) -> float | None:
    """Dollars per chip and hour; None if it is not known.

    Args:
      kind: of the chip.
      zone: where it is rented.
      capacity: how it is bought.
      given: of `read_prices`; the most particular entry counts.
    """
    region = region_of(zone)
    for key in (f"{kind}/{region}/{capacity}", f"{kind}/{region}", kind):
        if key in given and (capacity == "on_demand" or key.count("/") == 2):
            return given[key]
    if capacity == "on_demand" and region.startswith("us-"):
        return CHIPS[kind].price
    return None


def by_price(kind: str, capacity: str, given: Prices) -> list[str]:
    """The zones of a kind, the cheapest first, those without a known price last; otherwise in the order of `ZONES`."""

    def key(zone: str) -> tuple[bool, float]:
        dollars = price(kind, zone, capacity, given)
        return dollars is None, dollars or 0.0

    return sorted(ZONES[kind], key=key)


def read_prices(path: str) -> Prices:
    """Dollars per chip and hour from a JSON file, e.g. `{"v5p": 4.2, "v5p/europe-west4/spot": 2.1}`; empty without one.

    Raises:
      UserError: if the file cannot be read, or has another form.
    """
    if not path:
        return {}
    try:
        values: Any = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--prices={path} cannot be read: {error}; give a JSON file") from None
    if not isinstance(values, dict):
        raise UserError(f'--prices={path} must hold a JSON object such as {{"v5p/us-east5": 4.2}}')
    for key, dollars in values.items():
        parts = key.split("/")
        if parts[0] not in CHIPS or len(parts) > 3 or (len(parts) == 3 and parts[2] not in CAPACITIES):
            raise UserError(
                f"--prices names {key!r}; write CHIP, CHIP/REGION or CHIP/REGION/CAPACITY{nearest(parts[0], CHIPS)}"
            )
        if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 <= dollars <= 1e6:
            raise UserError(f"the price of {key} must be dollars per chip and hour, not {dollars!r}")
    return {key: float(dollars) for key, dollars in values.items()}

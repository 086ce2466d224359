"""Cleaning of the pairs of stage 1, OCR pages, and a month of storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qwenvl_jax.planning.paper.lines import Line, without_chips
from qwenvl_jax.planning.prediction import SECONDS_PER_HOUR

PAIRS = 5e9  # before cleaning (paper, Table 2)
OCR_PAGES = 24.8e6  # paper, Table 3; all of them count as synthetic ones
# Pairs or pages per second of one core (docs/pipelines.md, "read, .." and "rules .."; docs/ocr.md, English).
RATES = {
    "read, open pictures, compare pairs, write": (PAIRS, "pairs", 3390),
    "rules on texts, sizes and shapes": (PAIRS, "pairs", 1036),
    "OCR pages": (OCR_PAGES, "pages", 6.8),
}
CLIP_PAIRS = 4706  # pairs per second of one H200 and the cores beside it (docs/pipelines.md)
CLIP_CORES = 16
STORED = {  # what is stored -> pictures in millions, and kB per picture, which are assumed
    "records of stage 1": (1417.4, 30),  # the sum of the column `Cleaned` (paper, Table 2)
    # 69.0M samples of Table 3 show pictures; pictures are stored once for all their samples (docs/input.md, packing).
    "records of stage 2": (0.81 * 69.0, 145),
}


def lines(prices: Mapping[str, float]) -> Iterator[Line]:
    """The lines of the corpora; `prices` has those of `assumptions.SERVICES`."""
    for name, (count, unit, rate) in RATES.items():
        hours = count / rate / SECONDS_PER_HOUR
        formula = f"{count:,.0f} {unit} / {rate:,} per second of a core (measured) / 3,600 x ${prices['core']:g}"
        yield without_chips("corpora", name, formula, core_hours=hours, dollars=hours * prices["core"])
    hours = PAIRS / CLIP_PAIRS / SECONDS_PER_HOUR
    yield without_chips(
        "corpora",
        "CLIP score",
        f"{PAIRS:,.0f} pairs / {CLIP_PAIRS:,} per second of an H200 with {CLIP_CORES} cores (measured) / 3,600 x "
        f"(${prices['h200']:g} + {CLIP_CORES} x ${prices['core']:g})",
        core_hours=CLIP_CORES * hours,
        dollars=hours * (prices["h200"] + CLIP_CORES * prices["core"]),
    )
    for name, (millions, kilobytes) in STORED.items():
        size = millions * kilobytes  # GB
        formula = (
            f"{millions:,.1f}M pictures x {kilobytes} kB (assumed) = {size:,.0f} GB x ${prices['storage']:g}, a month"
        )
        yield without_chips("corpora", f"storage, {name}", formula, dollars=size * prices["storage"])

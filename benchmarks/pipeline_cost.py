"""What a corpus costs: core-hours, chip-hours and dollars of each step, projected from measured rates.

    python -m benchmarks.cleaning --memory_rows= > cleaning.json
    python -m benchmarks.pipeline_cost --cleaning=cleaning.json [--pairs=5e9] [--clip_pairs_per_second=4706] ..

The rates are those of one core that `cleaning.py` measures, and of one chip that `clip_score.py` measures, decoding
included. Every pair passes every step, as if no rule before had dropped it, so the projection is an upper bound. It
contains neither storage nor traffic, and assumes that cores and chips scale perfectly. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SECONDS = 3600


def rows(arguments: argparse.Namespace) -> list[tuple[str, float, float, float]]:
    """Step, pairs per second of a core or chip, core-hours, chip-hours."""
    speed = json.loads(Path(arguments.cleaning).read_text())["speed"]
    everything = speed["1 worker"]["pairs_per_second"]
    without_texts = speed["1 worker, no rules on texts"]["pairs_per_second"]
    texts = 1 / (1 / everything - 1 / without_texts)
    clip = arguments.clip_pairs_per_second
    of_cores = (
        ("read, open pictures, compare pairs, write", without_texts),
        ("rules on texts, sizes and shapes (A.1)", texts),
    )
    table = [(step, rate, arguments.pairs / rate / SECONDS, 0.0) for step, rate in of_cores]
    chip_hours = arguments.pairs / clip / SECONDS
    return [*table, ("CLIP score", clip, chip_hours * arguments.cores_per_chip, chip_hours)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cleaning", required=True, help="the output of benchmarks/cleaning.py")
    parser.add_argument("--pairs", type=float, default=5e9)
    parser.add_argument("--clip_pairs_per_second", type=float, default=4706, help="of one chip; ViT-B-32 on an H200")
    parser.add_argument("--cores_per_chip", type=float, default=16, help="cores that decode for a chip")
    parser.add_argument("--core_price", type=float, default=0.05, help="dollars per core and hour")
    parser.add_argument("--chip_price", type=float, default=10.0, help="dollars per chip and hour, without its cores")
    arguments = parser.parse_args()
    print("| step | pairs/s of one core or chip | core-hours | chip-hours | dollars |\n|---|---|---|---|---|")
    total = [0.0, 0.0, 0.0]
    for step, rate, core_hours, chip_hours in rows(arguments):
        dollars = core_hours * arguments.core_price + chip_hours * arguments.chip_price
        total = [total[0] + core_hours, total[1] + chip_hours, total[2] + dollars]
        print(f"| {step} | {rate:,.0f} | {core_hours:,.0f} | {chip_hours:,.0f} | {dollars:,.0f} |")
    print(f"| all | | {total[0]:,.0f} | {total[1]:,.0f} | {total[2]:,.0f} |")


if __name__ == "__main__":
    main()

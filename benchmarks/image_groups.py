"""How evenly image groups fill: the packer on a stream with the shares of the paper's Table 3, for several numbers of
groups and image budgets.

Usage: python benchmarks/image_groups.py [SAMPLES]     (no accelerator; about ten seconds per line)

The lengths of texts are assumed: gamma-distributed around 30 tokens (captions, answers) to 60 (boxes), log-normal with
a median of 250 for OCR and 600 for pure text. An image takes 258 places.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from configs.stage2_multitask import SAMPLES
from qwenvl_jax.data.packing import Item, Packer

LENGTH, ROWS, WINDOW, IMAGE = 2048, 1024, 32, 258
TYPICAL = {"caption": 30, "vqa": 30, "grounding": 60, "ref_grounding": 40, "grounded_caption": 60}
MEDIAN = {"ocr": 250, "text": 600}


def stream(count: int) -> list[Item]:
    """Samples in the order of the mixture; every one but pure text shows an image."""
    rng = np.random.default_rng(0)
    shares = np.array(list(SAMPLES.values())) / sum(SAMPLES.values())
    items = []
    for n, task in enumerate(rng.choice(list(SAMPLES), count, p=shares)):
        text = rng.lognormal(math.log(MEDIAN[task]), 0.8) if task in MEDIAN else rng.gamma(4, TYPICAL[task] / 4)
        images = int(task != "text")
        items.append(Item(n, task, min(LENGTH, 10 + IMAGE * images + int(text)), images))
    return items


def main(count: int) -> None:
    items = stream(count)
    print("rows per group  budget per row  token fill  image fill")
    for groups in (1, 8, 64, 128, 512):
        for budget in (4.0, 4.2):
            images = math.ceil(ROWS / groups * budget)
            packer = Packer(ROWS // groups, LENGTH, images, WINDOW, groups)
            taken = [packer.add(item) for item in items if packer.fits(item)]
            rows = [row for micro in taken if micro for group in micro for row in group]
            microbatches = sum(micro is not None for micro in taken)
            tokens = sum(row.length for row in rows) / (microbatches * ROWS * LENGTH)
            shown = sum(row.images for row in rows) / (microbatches * groups * images)
            print(f"{ROWS // groups:14d}  {budget:14.1f}  {tokens:10.3f}  {shown:10.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)

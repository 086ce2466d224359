"""How full rows and image buffers get: the packer on a stream with the shares of the paper's Table 3, for several
image groups and budgets, and the time it takes per sample.

Usage: python benchmarks/packing.py [SAMPLES]     (no accelerator; some seconds per line)

The lengths of texts are assumed: gamma-distributed around 30 tokens (captions, answers) to 60 (boxes), log-normal with
a median of 250 for OCR and 600 for pure text. An image takes 258 places.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from configs.stage2_multitask import SAMPLES
from qwenvl_jax.data.packing import Item, Packer

LENGTH, IMAGE = 2048, 258
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
        items.append(Item(n, str(task), 10 + IMAGE * images + int(text), images))
    return items


def main(count: int) -> None:
    items = stream(count)
    print("rows per group  images per row  window  token fill  image fill  dropped  microseconds per sample")
    for rows in (8, 32):
        for budget in (4.0, 4.25, 4.5):
            for window in (8, 32, 128):
                images = math.ceil(rows * budget)
                packer = Packer(rows, LENGTH, images, window)
                fitting = [item for item in items if packer.fits(item)]
                start = time.perf_counter()
                groups = [group for item in fitting if (group := packer.add(item))]
                seconds = time.perf_counter() - start
                tokens = sum(row.length for group in groups for row in group) / (len(groups) * rows * LENGTH)
                shown = sum(row.images for group in groups for row in group) / (len(groups) * images)
                print(
                    f"{rows:14d}  {budget:14.3f}  {window:6d}  {tokens:10.3f}  {shown:10.3f}  "
                    f"{1 - len(fitting) / count:7.2%}  {1e6 * seconds / len(fitting):.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)

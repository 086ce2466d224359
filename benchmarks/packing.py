"""How full rows and image buffers get: the packer on a stream with the shares of the paper's Table 3, for several
image groups and budgets, with pictures stored once for all their samples and once per sample, and the time per sample.

Usage: python benchmarks/packing.py [SAMPLES]     (no accelerator; some seconds per line)

The lengths of texts are assumed: gamma-distributed around 30 tokens (captions, answers) to 60 (boxes), log-normal with
a median of 250 for OCR and 600 for pure text. An image takes 258 tokens. Assumed are also the samples per picture: 5.4
questions (VQAv2), 50 regions (Visual Genome), 3 phrases (RefCOCO) and 2 (GRIT), Poisson-distributed.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from configs.stage2_multitask import SAMPLES
from qwenvl_jax.data.packing import Item, Packer, images_of

LENGTH, QUERIES = 2048, 256
TYPICAL = {"caption": 30, "vqa": 30, "grounding": 60, "ref_grounding": 40, "grounded_caption": 60}
MEDIAN = {"ocr": 250, "text": 600}
BOXES = [(3.5, 2.0), (4.9, 50.0), (0.3, 3.0)]  # millions of samples of GRIT, Visual Genome and RefCOCO, and per picture
# Task, millions of samples and samples per picture.
SOURCES = [
    *((task, SAMPLES[task], 5.4 if task == "vqa" else 1.0) for task in ("caption", "vqa", "grounding", "ocr", "text")),
    *((task, *part) for task in ("ref_grounding", "grounded_caption") for part in BOXES),
]


def stream(count: int, *, shared: bool) -> list[Item]:
    """Records in the order of the mixture; every one but pure text shows an image."""
    rng = np.random.default_rng(0)
    draws = np.array([samples / (per_record if shared else 1) for _, samples, per_record in SOURCES])
    items: list[Item] = []
    made = 0
    while made < count:
        task, _, per_record = SOURCES[rng.choice(len(SOURCES), p=draws / draws.sum())]
        samples = 1 + rng.poisson(per_record - 1) if shared else 1
        lengths = [_length(rng, task) for _ in range(samples)]
        if task == "text":  # continues in further rows
            whole, rest = divmod(lengths[0], LENGTH)
            lengths = [LENGTH] * whole + [rest] * (rest > 0)
        items.append(Item(len(items), task, tuple(min(length, LENGTH) for length in lengths), int(task != "text")))
        made += samples
    return items


def _length(rng: np.random.Generator, task: str) -> int:
    text = rng.lognormal(math.log(MEDIAN[task]), 0.8) if task in MEDIAN else rng.gamma(4, TYPICAL[task] / 4)
    return 10 + (QUERIES + 2) * (task != "text") + int(text)


def fill(items: list[Item], rows: int, budget: float, window: int) -> str:
    """One line of the table."""
    images = math.ceil(rows * budget)
    packer = Packer(rows, LENGTH, images, window, image_cost=(QUERIES + 2) // 4)
    groups = []
    start = time.perf_counter()
    for item in items:
        packer.add(item)
        while (group := packer.next_group()) is not None:
            groups.append(group)
    seconds = time.perf_counter() - start
    packed = [item for group in groups for row in group for item in row.items]
    samples = sum(len(item.lengths) for item in packed)
    shown = sum(len(item.lengths) * item.images for item in packed)
    distinct = sum(map(images_of, groups))
    tokens = sum(sum(item.lengths) for item in packed) / (len(groups) * rows * LENGTH)
    return (
        f"{rows:14d}  {budget:14.3f}  {window:6d}  {tokens:10.3f}  {distinct / (len(groups) * images):10.3f}  "
        f"{samples / (len(groups) * rows):15.2f}  {distinct / shown:18.3f}  {1e6 * seconds / samples:.0f}"
    )


def main(count: int) -> None:
    for shared, budgets in ((True, (3.0, 3.25, 3.5)), (False, (4.0, 4.25, 4.5))):
        print(f"\nA picture is stored {'once for all its samples' if shared else 'with every sample'}:")
        print(
            "rows per group  images per row  window  token fill  image fill  samples per row  images per picture  "
            "microseconds per sample"
        )
        items = stream(count, shared=shared)
        for rows in (4, 8, 32):
            for budget in budgets:
                for window in (8, 32, 128):
                    print(fill(items, rows, budget, window), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)

"""What `config.data.jpeg_draft` gains and costs: milliseconds per image, and the difference of the pixels.

Usage: python benchmarks/jpeg_draft.py      (no accelerator; half a minute)
"""

from __future__ import annotations

import io
import time

import numpy as np
from input import photo

from qwenvl_jax.data.images.decode import decode_into

REPEATS = 5


def main() -> None:
    rng = np.random.default_rng(0)
    print("JPEG of      to   exact, ms  draft, ms  difference of 255: mean  99 %  largest")
    for width, height in ((640, 480), (1024, 768), (2048, 1536), (4032, 3024)):
        payload = io.BytesIO()
        photo(rng, width, height).save(payload, "JPEG", quality=90)
        for size in (224, 448):
            pixels, times = [], []
            for draft in (False, True):
                pixels.append(np.zeros((size, size, 3), np.uint8))
                start = time.perf_counter()
                for _ in range(REPEATS):
                    decode_into(payload.getvalue(), pixels[-1], draft)
                times.append(1e3 * (time.perf_counter() - start) / REPEATS)
            difference = np.abs(pixels[0].astype(int) - pixels[1])
            print(
                f"{width:4} x {height:4}  {size}  {times[0]:9.1f}  {times[1]:9.1f}  {difference.mean():23.2f}  "
                f"{np.percentile(difference, 99):4.0f}  {difference.max():7}"
            )


if __name__ == "__main__":
    main()

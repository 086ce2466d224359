"""Planted near duplicates of evaluation pictures: the share that is found, and false alarms on other pictures.

    python benchmarks/near_duplicates.py --cache=data/cache

Evaluation pictures are Tux Paint's stamps pasted on photographs (two Debian packages). A duplicate is a crop of 10 % of
both sides at a random offset, a JPEG of quality 30, half the size, a square of 224 pixels, the mirrored picture, a grey
one, or all of these but the crop at once. The others are compositions of the same stamps and photographs. The limits of
the rule are those of the recipes. Before, the hash is compared with a shorter one and with PDQ, ThreatExchange's.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pdqhash
from PIL import Image, ImageOps

from data_pipelines.clean.rule import Dropped
from data_pipelines.duplicates.decontaminate import DISTANCE, decontamination
from data_pipelines.duplicates.evaluation_index import build_index, save_index
from data_pipelines.duplicates.signatures import distances
from data_pipelines.fetch.apt import fetch_package
from data_pipelines.fetch.wallpapers import wallpapers
from data_pipelines.pair import Picture, RawPair
from data_pipelines.quickstart import tuxpaint
from qwenvl_jax.data.record_writer import write_records
from qwenvl_jax.data.schema import Record

WIDTH, HEIGHT = 448, 336
Rng = np.random.Generator


class Scenes:
    """Compositions of stamps and photographs."""

    def __init__(self, cache: Path):
        fetch_package(tuxpaint.PACKAGE, cache, tuxpaint.PATTERNS)
        self.photographs = []
        for path in wallpapers(cache):
            photograph = Image.open(path).convert("RGB")
            photograph.thumbnail((1600, 1600))
            self.photographs.append(photograph)
        self.stamps = []
        for stamp in tuxpaint.load(cache)[0]:
            if stamp.path:
                image = Image.open(stamp.path).convert("RGBA")
                image.thumbnail((200, 200))
                self.stamps.append(image)

    def draw(self, rng: Rng) -> Image.Image:
        photograph = self.photographs[rng.integers(len(self.photographs))]
        across = int(photograph.width * rng.uniform(0.25, 0.6))
        down = min(across * HEIGHT // WIDTH, photograph.height)
        left = int(rng.integers(photograph.width - across + 1))
        top = int(rng.integers(photograph.height - down + 1))
        scene = photograph.crop((left, top, left + across, top + down)).resize((WIDTH, HEIGHT))
        for _ in range(rng.integers(2, 6)):
            stamp = self.stamps[rng.integers(len(self.stamps))]
            factor = rng.uniform(0.6, 1.5)
            stamp = stamp.resize((max(1, int(stamp.width * factor)), max(1, int(stamp.height * factor))))
            corner = (int(rng.integers(-40, WIDTH - 80)), int(rng.integers(-40, HEIGHT - 80)))
            scene.paste(stamp, corner, stamp)
        return scene


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def crop(image: Image.Image, rng: Rng) -> Image.Image:
    across, down = round(image.width * 0.9), round(image.height * 0.9)
    left = int(rng.integers(image.width - across + 1))
    top = int(rng.integers(image.height - down + 1))
    return image.crop((left, top, left + across, top + down))


def together(image: Image.Image, rng: Rng) -> Image.Image:
    small = ImageOps.mirror(image).resize((image.width // 2, image.height // 2))
    return Image.open(io.BytesIO(jpeg(small.convert("L"), 30))).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image, Rng], Image.Image]] = {
    "crop 10 %": crop,
    "JPEG 30": lambda image, rng: Image.open(io.BytesIO(jpeg(image, 30))),
    "half size": lambda image, rng: image.resize((image.width // 2, image.height // 2)),
    "224 x 224": lambda image, rng: image.resize((224, 224)),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "grey": lambda image, rng: image.convert("L"),
    "all but crop": together,
}


HASHES: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "phash, 256 bits": lambda image: np.packbits(imagehash.phash(image, hash_size=16).hash),
    "phash, 64 bits": lambda image: np.packbits(imagehash.phash(image, hash_size=8).hash),
    "PDQ, 256 bits": lambda image: np.packbits(pdqhash.compute(np.asarray(image.convert("RGB")))[0].astype(bool)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--pictures", type=int, default=300, help="evaluation pictures")
    parser.add_argument("--others", type=int, default=10_000)
    arguments = parser.parse_args()
    scenes = Scenes(arguments.cache)
    rng = np.random.default_rng(0)
    originals = [scenes.draw(rng) for _ in range(arguments.pictures)]
    _compare_hashes(originals, rng)
    with tempfile.TemporaryDirectory() as folder:
        records = [
            Record(str(number), "caption", "planted", "en", "GPL-2.0-only", (jpeg(image, 90),), {"caption": "A scene."})
            for number, image in enumerate(originals)
        ]
        write_records(f"{folder}/records", {"test": records}, name="planted")
        start = time.perf_counter()
        index = build_index([(f"{folder}/records", "test")])
        print(f"index of {len(records)} pictures, {len(index.hashes)} hashes: {time.perf_counter() - start:.0f} s")
        save_index(index, f"{folder}/index")
        rule = decontamination(f"{folder}/index")

        def evidence(image: Image.Image) -> set[str]:
            verdict = rule(RawPair("x", "x", "x", pictures=(Picture(jpeg(image, 90)),)))
            return {item["evaluation"] for item in verdict.evidence} if isinstance(verdict, Dropped) else set()

        for name, change in CHANGES.items():
            found = sum(f"planted/{n}" in evidence(change(image, rng)) for n, image in enumerate(originals))
            print(f"{name:14s} {found / len(originals):.2%} of {len(originals)} found at {DISTANCE} bits")
        start = time.perf_counter()
        alarms = [names for names in (evidence(scenes.draw(rng)) for _ in range(arguments.others)) if names]
        seconds = time.perf_counter() - start
        rate = arguments.others / seconds
        print(f"others         {len(alarms)} of {arguments.others} alarms; drawing and asking {rate:.0f}/s")


def _compare_hashes(originals: list[Image.Image], rng: Rng) -> None:
    """How far each hash moves by a change, and how close different pictures are."""
    for name, hashed in HASHES.items():
        start = time.perf_counter()
        known = np.stack([hashed(image) for image in originals])
        milliseconds = (time.perf_counter() - start) / len(originals) * 1e3
        moved = []
        for label, change in CHANGES.items():
            apart = [
                distances(hashed(change(image, rng)), one[None])[0] for image, one in zip(originals, known, strict=True)
            ]
            moved.append(f"{label} {np.percentile(apart, 99):.0f}")
        others = min(int(distances(one, known[number + 1 :]).min()) for number, one in enumerate(known[:-1]))
        print(
            f"{name}: 99 % within {', '.join(moved)} bits; closest others {others}; {milliseconds:.1f} ms per picture"
        )


if __name__ == "__main__":
    main()

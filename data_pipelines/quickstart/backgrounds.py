"""Photographs to paste on, from the Debian package of `fetch.wallpapers`.

views = scale_views([b.image_HWC for b in load(Path("data/cache"))], scene_px=100)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.fetch.wallpapers import LICENSES, wallpapers
from qwenvl_jax.data.images.exact import FORMATS

STORED_SHORT_SIDE = 400  # px; a larger picture would only be scaled down again
SHORT_SIDES = (1.3, 2.0, 3.0)  # relative to a scene's side; they determine how much of a photograph a crop shows


@dataclasses.dataclass(frozen=True)
class Background:
    """One photograph: [H, W, 3] uint8, its file name and licence."""

    name: str
    license: str
    image_HWC: np.ndarray


def load(cache: Path) -> list[Background]:
    """The photographs, sorted by name, short side at most 400 px.

    Raises:
      SourceUnavailable: if the package is not available on this machine.
    """
    return [Background(file.name, LICENSES[file.name], _read(file)) for file in wallpapers(cache)]


def scale_views(images: Sequence[np.ndarray], scene_px: int) -> list[np.ndarray]:
    """Each photograph at three scales, so that a random crop of `scene_px` is just a slice."""
    views = []
    for image in images:
        picture = Image.fromarray(image)
        for factor in SHORT_SIDES:
            scale = factor * scene_px / min(picture.size)
            size = tuple(max(scene_px, round(side * scale)) for side in picture.size)
            views.append(np.asarray(picture.resize(size, Image.Resampling.LANCZOS)))  # type: ignore[arg-type]
    return views


def _read(path: Path) -> np.ndarray:
    with Image.open(path, formats=FORMATS) as image:
        image.draft("RGB", (2 * STORED_SHORT_SIDE, 2 * STORED_SHORT_SIDE))
        rgb = image.convert("RGB")
        scale = min(1.0, STORED_SHORT_SIDE / min(rgb.size))
        size = (round(rgb.width * scale), round(rgb.height * scale))
        return np.asarray(rgb.resize(size, Image.Resampling.LANCZOS))

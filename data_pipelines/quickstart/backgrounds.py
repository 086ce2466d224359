"""Photographs to paste on: 7 from the Debian package `lomiri-wallpapers-16.04` (16 MB).

Three kinds of its pictures are not used: those under CC-BY-SA (a scene is also under the stamps' GPL, which is
compatible with CC-BY and CC0 only), a computer drawing, and two that show animals or a fruit, which no caption would
name.

    views = scale_views([b.image_HWC for b in load(Path("data/cache"))], scene_px=100)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.fetch.apt import SourceUnavailable, fetch_package
from qwenvl_jax.data.images.exact import FORMATS

PACKAGE = "lomiri-wallpapers-16.04"
PATTERNS = ("usr/share/backgrounds/*.jpg", f"usr/share/doc/{PACKAGE}/copyright")

# File -> licence, as the package's copyright file states it.
LICENSES = {
    "Picture_1A_by_freespace.jpg": "CC-BY-4.0",
    "Wine_by_Jakkub_Mede.jpg": "CC-BY-4.0",
    "aitzgorri_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
    "life_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
    "seeding_by_Clements_Engelhardt.jpg": "CC0-1.0",
    "sunset_by_Aitzol_Berasategi.jpg": "CC-BY-4.0",
}
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
    folder = fetch_package(PACKAGE, cache, PATTERNS) / "usr/share/backgrounds"
    names = [name for name in sorted(LICENSES) if (folder / name).exists()]
    if not names:
        raise SourceUnavailable(f"{PACKAGE} contains none of the expected photographs")
    return [Background(name, LICENSES[name], _read(folder / name)) for name in names]


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

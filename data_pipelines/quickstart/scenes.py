"""Scenes: one to three stamps pasted on a crop of a photograph, so that every box is exact.

    cache = Path("data/cache")
    settings = SceneSettings()
    raws, _ = tuxpaint.load(cache)                                    # or drawn_stamps.stamps()
    stamps = select_stamps(raws, settings.stamp_count, settings.sizes_px)
    views = scale_views([b.image_HWC for b in backgrounds.load(cache)], settings.scene_px)
    scene = make_scene(np.random.default_rng(0), stamps, views, settings)
    scene.image_HWC                                                   # [100, 100, 3] uint8
    [(o.stamp.name_en, o.box) for o in scene.objects]                 # left to right

`scene_at(seed, split, index, ...)` is a pure function, so any worker can make any scene. The two splits never share a
composition (`split_of`).
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.quickstart.stamps import Stamp, View, tight_box
from qwenvl_jax.runtime.errors import UserError

SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 8  # one composition in eight belongs to the held-out split


@dataclasses.dataclass(frozen=True)
class SceneSettings:
    """How scenes look. Sizes are long sides relative to the scene's side.

    With `scene_px` 100 every pixel is ten thousandths, so box coordinates are multiples of 10. `margin_px` keeps the
    far edges below 1000, which the text format cannot write. Positions and sides of stamps are multiples of `grid_px`,
    so that a coordinate has fewer values to tell apart. Boxes are exact on any grid; a box whose edge is hidden by
    another stamp may be off the grid.
    """

    scene_px: int = 100
    stamp_count: int = 40
    min_size: float = 0.35
    max_size: float = 0.60
    min_objects: int = 1
    max_objects: int = 3
    max_overlap: float = 0.10  # of the smaller box
    margin_px: int = 1
    grid_px: int = 1
    jpeg_quality: int = 85

    @property
    def sizes_px(self) -> range:
        """The long sides at which stamps are prepared."""
        low = round(self.min_size * self.scene_px)
        high = round(self.max_size * self.scene_px)
        return range(-(-low // self.grid_px) * self.grid_px, high + 1, self.grid_px)

    def check(self) -> SceneSettings:
        """Returns itself; raises UserError if no scene could be made."""
        if not 0 < self.min_size <= self.max_size < 1 or not 1 <= self.min_objects <= self.max_objects <= 3:
            raise UserError("scene settings need 0 < min_size <= max_size < 1 and 1 <= min_objects <= max_objects <= 3")
        if self.stamp_count < 2 * self.max_objects:
            raise UserError(f"stamp_count {self.stamp_count} is too few for scenes of {self.max_objects} objects")
        if self.scene_px < 32 or not 0 <= self.max_overlap < 0.5 or not 0 <= self.margin_px < self.scene_px // 8:
            raise UserError("scene settings need scene_px >= 32, max_overlap in [0, 0.5) and a small margin_px")
        if not 1 <= self.grid_px <= self.scene_px // 10 or not self.sizes_px:
            raise UserError("scene.grid_px must be between 1 and a tenth of scene_px, and divide a size of a stamp")
        if not 30 <= self.jpeg_quality <= 100:
            raise UserError(f"jpeg_quality is {self.jpeg_quality}; it must be between 30 and 100")
        return self


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """A pasted stamp and the tight box (x1, y1, x2, y2) of its visible pixels; x2, y2 exclusive."""

    stamp: Stamp
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the centre of the box in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclasses.dataclass(frozen=True)
class Scene:
    """[S, S, 3] uint8 and its objects from left to right."""

    image_HWC: np.ndarray
    objects: tuple[SceneObject, ...]


def make_scene(
    rng: np.random.Generator,
    stamps: Sequence[Stamp],
    backgrounds: Sequence[np.ndarray],
    settings: SceneSettings,
    split: str | None = None,
) -> Scene:
    """Composes one scene.

    Args:
      rng: consumed; equal states give equal scenes.
      stamps: prepared at `settings.sizes_px`; a scene uses each at most once.
      backgrounds: [h, w, 3] uint8 with both sides at least `settings.scene_px` (see `scale_views`).
      split: "train" or "heldout" to draw only compositions of that split, None for any.
    """
    while True:
        placements = _arrange(rng, stamps, settings)
        image, boxes = _paste(random_crop(rng, backgrounds, settings.scene_px), placements)
        objects = [SceneObject(placement.stamp, box) for placement, box in zip(placements, boxes, strict=True)]
        objects.sort(key=lambda item: item.center)
        if split is None or split_of(objects) == split:
            return Scene(image, tuple(objects))


def split_of(objects: Sequence[SceneObject]) -> str:
    """The split of a composition (which stamps, which boxes). It is a fixed function, so the splits never overlap."""
    key = ";".join(f"{o.stamp.id}@{o.box}" for o in objects)
    return "heldout" if zlib.crc32(key.encode()) % _HELDOUT_SHARE == 0 else "train"


def scene_at(
    seed: int,
    split: str,
    index: int,
    stamps: Sequence[Stamp],
    backgrounds: Sequence[np.ndarray],
    settings: SceneSettings,
) -> Scene:
    """Scene number `index` of a split."""
    return make_scene(rng_for(seed, "scene", split, index), stamps, backgrounds, settings, split)


def rng_for(seed: int, purpose: str, split: str, index: int) -> np.random.Generator:
    """Independent randomness for every (seed, purpose, split, index)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), SPLITS.index(split), index])


def encode_image(image_HWC: np.ndarray, quality: int) -> bytes:
    """JPEG bytes without colour subsampling (text and edges stay sharp)."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def random_crop(rng: np.random.Generator, backgrounds: Sequence[np.ndarray], side: int) -> np.ndarray:
    """A copy of a random [side, side, 3] part of a random background."""
    source = backgrounds[int(rng.integers(len(backgrounds)))]
    y = rng.integers(source.shape[0] - side + 1)
    x = rng.integers(source.shape[1] - side + 1)
    return source[y : y + side, x : x + side].copy()


class _Placement(NamedTuple):
    """A stamp at one size, and the pixel of its top left corner."""

    stamp: Stamp
    view: View
    x: int
    y: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        height, width = self.view.visible_HW.shape
        return self.x, self.y, self.x + width, self.y + height


def _arrange(rng: np.random.Generator, stamps: Sequence[Stamp], settings: SceneSettings) -> list[_Placement]:
    """Random stamps, sizes and positions with limited overlap; the largest size shrinks while they do not fit."""
    grid = settings.grid_px
    near = settings.margin_px
    far = settings.scene_px - settings.margin_px
    low = settings.sizes_px[0]
    high = settings.sizes_px[-1]
    count = int(rng.integers(settings.min_objects, settings.max_objects + 1))
    chosen = [stamps[i] for i in rng.choice(len(stamps), size=count, replace=False)]
    while True:
        placements: list[_Placement] = []
        for _ in range(12 * count):
            stamp = chosen[len(placements)]
            view = stamp.views[on_grid(rng, low, high, grid)]
            height, width = view.visible_HW.shape
            x = on_grid(rng, near, far - width, grid)
            y = on_grid(rng, near, far - height, grid)
            candidate = _Placement(stamp, view, x, y)
            if all(_overlap(candidate.box, other.box) <= settings.max_overlap for other in placements):
                placements.append(candidate)
                if len(placements) == count:
                    return placements
        high = max(low, high - grid)


def on_grid(rng: np.random.Generator, low: int, high: int, grid: int) -> int:
    """A random multiple of `grid` in [low, high]; `low` if there is none."""
    first = -(-low // grid)
    last = high // grid
    return int(rng.integers(first, last + 1)) * grid if first <= last else low


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The common area relative to the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _paste(image: np.ndarray, placements: Sequence[_Placement]) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Blends the stamps onto `image` in order; each box encloses the pixels that later stamps leave visible."""
    owner = np.zeros(image.shape[:2], np.uint8)
    for number, (_, view, x, y) in enumerate(placements, start=1):
        h, w = view.visible_HW.shape
        part = image[y : y + h, x : x + w]
        part[...] = ((part * (255 - view.alpha_HW1) + 127) // 255 + view.premultiplied_HWC).clip(0, 255)
        owner[y : y + h, x : x + w][view.visible_HW] = number
    boxes = []
    for number in range(1, len(placements) + 1):
        box = tight_box(owner == number)
        assert box is not None, "overlap is limited to less than half of a stamp"
        boxes.append(box)
    return image, boxes

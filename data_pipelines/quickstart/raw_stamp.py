"""The value that every source of stamps yields: a cut-out picture with its captions."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from qwenvl_jax.data.images.exact import FORMATS


@dataclasses.dataclass(frozen=True)
class RawStamp:
    """One stamp as it is in its source.

    Attributes:
      id: stable name, e.g. "animals/mammals/badger".
      category: first part of the id.
      caption_en: the source's sentence, e.g. "A badger."
      caption_zh: the Chinese sentence, or "".
      license: SPDX name.
      source: name of the source, e.g. "tuxpaint".
      path: picture file, or "" if it cannot be read (SVG) or `pixels_HWC` has the pixels.
      pixels_HWC: [H, W, 4] uint8 RGBA, or None to read `path`.
    """

    id: str
    category: str
    caption_en: str
    caption_zh: str
    license: str
    source: str
    path: str = ""
    pixels_HWC: np.ndarray | None = None

    @property
    def has_picture(self) -> bool:
        """Whether `load_rgba` can read a picture."""
        return bool(self.path) or self.pixels_HWC is not None


def load_rgba(stamp: RawStamp) -> np.ndarray:
    """The picture as [H, W, 4] uint8, straight (not premultiplied) alpha."""
    if stamp.pixels_HWC is not None:
        return stamp.pixels_HWC
    with Image.open(stamp.path, formats=FORMATS) as image:
        return np.asarray(image.convert("RGBA"))

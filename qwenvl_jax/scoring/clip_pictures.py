"""Encoded pictures to the pixels that CLIP sees: the shorter side scaled to the image size, the middle cut out.

This is OpenCLIP's transform for evaluation, to the bit for RGB and grey pictures. Other pictures become RGB before they
are scaled, as everywhere in this project, and not after.

H, W: pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from qwenvl_jax.data.images import exact

# Pictures that are longer are cut before they are scaled: a strip of 1 x 30,000 pixels would need gigabytes.
_LONGEST = 16


def center_pixels(payload: bytes, size: int) -> np.ndarray:
    """Decodes a picture to RGB, scales its shorter side to `size` by bicubic filtering, and cuts out the middle.

    Args:
      payload: an encoded picture.
      size: H, in pixels.

    Returns:
      uint8 [H, H, 3].

    Raises:
      UserError: if the bytes cannot be decoded; see `exact.decode_image`.
    """
    image = exact.decode_image(payload)
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    left = round((width - size) / 2)
    top = round((height - size) / 2)
    crop = (left, top, left + size, top + size)
    if max(width, height) <= _LONGEST * size:
        if (width, height) != image.size:
            image = _scaled(image, width, height)
        return np.asarray(image.crop(crop))
    across = image.width / width
    down = image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, one axis after the other in the order of Pillow 12, as `exact.resize_square`."""
    for shape in ((width, image.height), (width, height)):
        image = image.resize(shape, Image.Resampling.BICUBIC)
    return image

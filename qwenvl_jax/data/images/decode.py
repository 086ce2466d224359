"""Encoded images to square pixels, stretched or cut out, by Pillow or the fast code.

H, W: pixels.
"""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import numpy as np
from PIL import Image

from qwenvl_jax.data.images import exact
from qwenvl_jax.data.images.exact import Size


def decode_into(payload: bytes, pixels_HWC: np.ndarray, draft: bool = False, stated: Size | None = None) -> None:
    """Decodes an image into existing square pixels [H, H, 3] uint8.

    Args:
      payload: an encoded image.
      pixels_HWC: the destination; contiguous.
      draft: whether a large JPEG is scaled down while it is decoded, to no less than twice H. This is faster, and
        differs from what the released model saw (docs/input.md says by how much).
      stated: the size that the image must have; None for any.

    Raises:
      UserError: as `exact.decode_image`.
    """
    size = pixels_HWC.shape[0]
    smallest_side = 2 * size if draft else 0
    fast = _fast()
    if fast is None:
        pixels_HWC[...] = exact.resize_square(exact.decode_image(payload, smallest_side, stated), size)
        return
    decoded = None if draft else fast.decode_jpeg(payload)
    if decoded is None:
        decoded = np.asarray(exact.decode_image(payload, smallest_side, stated))
    else:
        exact.check_stated(decoded.shape[1], decoded.shape[0], stated)
    fast.resize_square(decoded, pixels_HWC)


def decode_center(payload: bytes, size: int) -> np.ndarray:
    """Decodes an image, scales its shorter side to `size` by bicubic filtering, and cuts out the middle.

    An image that is more than `exact.LONGEST` times as long as wide is cut before it is scaled.

    Args:
      payload: an encoded image.
      size: H, in pixels.

    Returns:
      uint8 [H, H, 3].

    Raises:
      UserError: as `exact.decode_image`.
    """
    fast = _fast()
    decoded = fast.decode_jpeg(payload) if fast else None
    if decoded is None:
        decoded = np.asarray(exact.decode_image(payload))
    height, width, _ = decoded.shape
    if fast is None or max(height, width) > exact.LONGEST * min(height, width):
        return exact.resize_center(Image.fromarray(decoded), size)
    pixels_HWC = np.empty((size, size, 3), np.uint8)
    scaled, corner = exact.center_window(width, height, size)
    fast.resize_window(decoded, scaled, corner, pixels_HWC)
    return pixels_HWC


@functools.cache
def _fast() -> ModuleType | None:
    """The module `fast`; None if numba or simplejpeg is missing, or if it gives other bits than Pillow here."""
    if any(importlib.util.find_spec(name) is None for name in ("numba", "simplejpeg")):
        return None
    from qwenvl_jax.data.images import fast

    return fast if fast.agrees() else None

"""Encoded images to square pixels, stretched or cut out, by Pillow or the fast code.

H, W: pixels.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType

import numpy as np
from PIL import Image

from qwenvl_jax.data.images import exact
from qwenvl_jax.data.images.exact import Size


def decode_into(payload: bytes, pixels_HWC: np.ndarray, draft: bool = False, stated: Size | None = None) -> None:
    """Decodes an image into existing square pixels [H, H, 3] uint8, and stretches it to their shape.

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
    decoded = _decoded(payload, 2 * size if draft else 0, stated)
    if fast := _fast():
        fast.resize_square(decoded, pixels_HWC)
    else:
        pixels_HWC[...] = exact.resize_square(Image.fromarray(decoded), size)


def decode_center_into(payload: bytes, pixels_HWC: np.ndarray, stated: Size | None = None) -> None:
    """Decodes an image, scales its shorter side to H by bicubic filtering, and writes the middle: [H, H, 3] uint8.

    This is OpenCLIP's transform for evaluation, see `exact.resize_center`. The arguments are those of `decode_into`.

    Raises:
      UserError: as `exact.decode_image`.
    """
    size = pixels_HWC.shape[0]
    decoded = _decoded(payload, 0, stated)
    height, width, _ = decoded.shape
    fast = _fast()
    if fast is None or exact.is_strip(width, height):
        pixels_HWC[...] = exact.resize_center(Image.fromarray(decoded), size)
    else:
        fast.resize_window(decoded, *exact.center_window(width, height, size), pixels_HWC)


# By how an image becomes a square; each takes the encoded image, the pixels, and the stated size.
DECODERS: dict[str, Callable[[bytes, np.ndarray, Size | None], None]] = {
    "stretch": lambda payload, pixels_HWC, stated: decode_into(payload, pixels_HWC, stated=stated),
    "draft": lambda payload, pixels_HWC, stated: decode_into(payload, pixels_HWC, draft=True, stated=stated),
    "center": decode_center_into,
}


def _decoded(payload: bytes, smallest_side: int, stated: Size | None) -> np.ndarray:
    """RGB pixels [H, W, 3] uint8; a JPEG may be scaled down to no less than `smallest_side`, unless that is 0."""
    fast = _fast()
    decoded = fast.decode_jpeg(payload) if fast and not smallest_side else None
    if decoded is None:
        return np.asarray(exact.decode_image(payload, smallest_side, stated))
    exact.check_stated(decoded.shape[1], decoded.shape[0], stated)
    return decoded


@functools.cache
def _fast() -> ModuleType | None:
    """The module `fast`; None if numba or simplejpeg is missing, or if it gives other bits than Pillow here."""
    if any(importlib.util.find_spec(name) is None for name in ("numba", "simplejpeg")):
        return None
    from qwenvl_jax.data.images import fast

    return fast if fast.agrees() else None

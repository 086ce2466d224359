"""Encoded images to pixels, exactly as the released model prepares them.

H, W: pixels.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import warnings
from types import ModuleType
from typing import BinaryIO

import numpy as np
from PIL import Image

from qwenvl_jax.runtime.errors import UserError

MAX_PIXELS = 178_956_970  # what Pillow itself takes for a decompression bomb, raised to an error here

MAX_BYTES = 1 << 28  # of one encoded image; what is longer is read only so far


def read_encoded(file: BinaryIO, size: int = MAX_BYTES) -> bytes:
    """Reads one encoded image of `size` bytes from where `file` stands, but never more than MAX_BYTES.

    A longer file becomes an image that is cut off, which `decode_image` refuses: it is counted as corrupt like any
    other, and never fills the memory.
    """
    return file.read(min(size, MAX_BYTES))


def decode_image(payload: bytes, draft: int = 0) -> Image.Image:
    """Decodes PNG, JPEG, WebP, ... to an RGB image; no EXIF rotation (released visual.py: `convert("RGB")`).

    Args:
      payload: an encoded image.
      draft: a JPEG may come out scaled down by 2, 4 or 8, as long as its sides keep this many pixels (0: never).

    Raises:
      UserError: if the bytes are not an image, are cut off, or hold more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(payload))
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"an image of {image.width} x {image.height} pixels is too large; scale it down")
            if draft:
                image.draft("RGB", (draft, draft))
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except UserError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        start = payload[:16].hex(" ")
        kind = type(error).__name__
        raise UserError(f"{len(payload)} bytes starting {start!r} are not a readable image ({kind})") from None


def resize_square(image: Image.Image, size: int) -> np.ndarray:
    """RGB pixels [size, size, 3] uint8, resized by Pillow's antialiased bicubic (a = -0.5).

    The aspect ratio is not kept and nothing is cropped (released visual.py: Resize((448, 448), BICUBIC) on the
    Pillow image). An image that has the size already is taken as it is, which is what the filter gives as well.
    """
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def decode_into(payload: bytes, pixels_HWC: np.ndarray, draft: bool = False) -> None:
    """Decodes an image into square pixels [H, H, 3] uint8 that are there already.

    Args:
      payload: an encoded image.
      pixels_HWC: where to; contiguous.
      draft: whether a large JPEG is scaled down while it is decoded, to no less than twice H; faster, and not what
        the released model saw to the bit (docs/input.md has the difference).

    Raises:
      UserError: as `decode_image`.
    """
    size, fast = pixels_HWC.shape[0], _fast()
    if fast is None:
        pixels_HWC[...] = resize_square(decode_image(payload, 2 * size if draft else 0), size)
        return
    decoded = None if draft else fast.decode_jpeg(payload)
    if decoded is None:
        decoded = np.asarray(decode_image(payload, 2 * size if draft else 0))
    fast.resize_square(decoded, pixels_HWC)


@functools.cache
def _fast() -> ModuleType | None:
    """The module of the same functions for which numba and simplejpeg are needed, if it can be used."""
    if any(importlib.util.find_spec(name) is None for name in ("numba", "simplejpeg")):
        return None
    from qwenvl_jax.data import fast_image

    return fast_image if fast_image.agrees() else None

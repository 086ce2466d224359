"""Encoded images to pixels, exactly as the released model prepares them.

H, W: pixels.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import warnings
from types import ModuleType

import numpy as np
from PIL import Image

from qwenvl_jax.runtime.errors import UserError

# What the web shows everywhere, and what the paper's corpora hold. Everything else that Pillow knows stays closed: EPS
# would start Ghostscript, TIFF and others bring decoders that are rarely tested, AVIF is not in every build of Pillow.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")  # of the names of their files

MAX_PIXELS = 178_956_970  # what Pillow itself takes for a decompression bomb, raised to an error here
MAX_SIDE = 65_535  # resizing first makes one side small: a strip of a pixel's width would need room for all its length
MAX_SCANS = 100  # of a JPEG, each of which is a pass over all pixels; progressive ones have about ten
MAX_RUNS = 1 << 24  # bytes of a BMP in run lengths, which Pillow decodes one by one in Python

MAX_BYTES = 1 << 28  # of one encoded image; what is longer is read only so far

Size = tuple[float, float]  # width and height in pixels, as a record states them


def decode_image(payload: bytes, draft: int = 0, stated: Size | None = None) -> Image.Image:
    """Decodes JPEG, PNG, WebP, GIF or BMP to an RGB image, as the released visual.py does: Pillow's `convert("RGB")`.

    So nothing is rotated by EXIF, alpha is dropped and not painted on a background, the first frame stands for all,
    and grey of 16 bits is clipped to 8.

    Args:
      payload: an encoded image.
      draft: a JPEG may come out scaled down by 2, 4 or 8, as long as its sides keep this many pixels (0: never).
      stated: the size that it must have.

    Raises:
      UserError: if the bytes are not an image of these formats, are cut off, hold more than MAX_PIXELS pixels or are
        longer than MAX_SIDE, would take too long to decode, or have another size than the stated one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(payload), formats=FORMATS)
            if not bearable(*image.size):
                raise UserError(f"an image of {image.width} x {image.height} pixels is too large; scale it down")
            _check_work(image, payload)
            check_stated(*image.size, stated)
            if draft:
                image.draft("RGB", (draft, draft))
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        start = payload[:16].hex(" ")
        kind = type(error).__name__
        raise UserError(
            f"{len(payload)} bytes starting {start!r} are not a readable image ({kind}); {', '.join(FORMATS)} are read"
        ) from None


def bearable(width: int, height: int) -> bool:
    """Whether an image of that size may be decoded and resized."""
    return width * height <= MAX_PIXELS and max(width, height) <= MAX_SIDE


def scans(payload: bytes) -> int:
    """How many scans a JPEG has, at least. Inside of one, the byte FF is never followed by DA."""
    return payload.count(b"\xff\xda")


def _check_work(image: Image.Image, payload: bytes) -> None:
    """Refuses what is made to keep a decoder busy for hours."""
    if image.format in ("JPEG", "MPO") and scans(payload) > MAX_SCANS:
        raise UserError(f"a JPEG of {scans(payload)} scans takes too long to decode; save it again")
    if image.format == "BMP" and image.info.get("compression") in (1, 2) and len(payload) > MAX_RUNS:
        raise UserError("a BMP in so many run lengths takes too long to decode; save it as PNG")


def check_stated(width: int, height: int, stated: Size | None) -> None:
    """Raises UserError if a record states another size than its image has: places in it would lie elsewhere."""
    if stated is not None and tuple(stated) != (width, height):
        raise UserError(
            f"the image has {width} x {height} pixels (EXIF rotation is not applied), but its record says "
            f"{stated[0]} x {stated[1]}; correct the size and the places that were measured by it"
        )


def resize_square(image: Image.Image, size: int) -> np.ndarray:
    """RGB pixels [size, size, 3] uint8, resized by Pillow's antialiased bicubic (a = -0.5).

    The aspect ratio is not kept and nothing is cropped (released visual.py: Resize((448, 448), BICUBIC) on the
    Pillow image). An image that has the size already is taken as it is, which is what the filter gives as well. The
    two passes are asked for one by one, in Pillow 12's order: Pillow 13 has another, which rounds otherwise.
    """
    if image.size != (size, size):
        between = (image.width, size) if rows_first(*image.size, size) else (size, image.height)
        for shape in (between, (size, size)):
            image = image.resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(image)


def rows_first(width: int, height: int, size: int) -> bool:
    """Whether Pillow 12 squashes the height of such a picture first: only that of extremely tall ones."""
    return height > 100 * width and size < height


def decode_into(payload: bytes, pixels_HWC: np.ndarray, draft: bool = False, stated: Size | None = None) -> None:
    """Decodes an image into square pixels [H, H, 3] uint8 that are there already.

    Args:
      payload: an encoded image.
      pixels_HWC: where to; contiguous.
      draft: whether a large JPEG is scaled down while it is decoded, to no less than twice H; faster, and not what
        the released model saw to the bit (docs/input.md has the difference).
      stated: the size that it must have.

    Raises:
      UserError: as `decode_image`.
    """
    size, fast = pixels_HWC.shape[0], _fast()
    if fast is None:
        pixels_HWC[...] = resize_square(decode_image(payload, 2 * size if draft else 0, stated), size)
        return
    decoded = None if draft else fast.decode_jpeg(payload)
    if decoded is None:
        decoded = np.asarray(decode_image(payload, 2 * size if draft else 0, stated))
    else:
        check_stated(decoded.shape[1], decoded.shape[0], stated)
    fast.resize_square(decoded, pixels_HWC)


@functools.cache
def _fast() -> ModuleType | None:
    """The module of the same functions for which numba and simplejpeg are needed, if it can be used."""
    if any(importlib.util.find_spec(name) is None for name in ("numba", "simplejpeg")):
        return None
    from qwenvl_jax.data.images import fast

    return fast if fast.agrees() else None

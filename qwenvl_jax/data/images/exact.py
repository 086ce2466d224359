"""Decoding and resizing with Pillow, exactly as the released model prepares its images.

H, W: pixels.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from qwenvl_jax.runtime.errors import UserError

# The formats that every browser shows and that the paper's corpora contain. Pillow's other formats are not opened: EPS
# would start Ghostscript, TIFF and others have decoders that are rarely tested, AVIF is not in every build of Pillow.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")  # of file names in these formats

MAX_PIXELS = 178_956_970  # above this, Pillow warns of a decompression bomb; here it is an error
MAX_SIDE = 65_535  # one pass of resizing keeps a side: a strip one pixel wide would need its whole length as memory
MAX_SCANS = 100  # of a JPEG; each scan is a pass over all pixels, and progressive JPEGs have about ten
MAX_RUNS = 1 << 24  # bytes of a run-length encoded BMP, whose runs Pillow decodes one by one in Python

MAX_BYTES = 1 << 28  # longest encoded image that is read; the rest is cut off, and the image then counts as corrupt


Size = tuple[float, float]  # width and height in pixels, as a record states them


def decode_image(payload: bytes, draft: int = 0, stated: Size | None = None) -> Image.Image:
    """Decodes JPEG, PNG, WebP, GIF or BMP to an RGB image, as the released visual.py does: Pillow's `convert("RGB")`.

    So EXIF rotation is ignored, alpha is dropped and not blended with a background, only the first frame is used, and
    16-bit grey is clipped to 8 bits.

    Args:
      payload: an encoded image.
      draft: a JPEG may come out scaled down by 2, 4 or 8, as long as its sides keep this many pixels (0: never).
      stated: the size that the image must have; None for any.

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
            check_work(image, payload)
            check_stated(*image.size, stated)
            if draft:
                image.draft("RGB", (draft, draft))
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # convert always copies
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        start = payload[:16].hex(" ")
        kind = type(error).__name__
        raise UserError(
            f"{len(payload)} bytes starting {start!r} are not a readable image ({kind}); {', '.join(FORMATS)} are read"
        ) from None


def size_of(payload: bytes) -> tuple[int, int]:
    """Width and height of an image that `decode_image` can read; its pixels are not decoded."""
    with Image.open(io.BytesIO(payload), formats=FORMATS) as image:
        return image.size


def bearable(width: int, height: int) -> bool:
    """Whether an image of that size may be decoded and resized."""
    return width * height <= MAX_PIXELS and max(width, height) <= MAX_SIDE


def scans(payload: bytes) -> int:
    """A lower bound of the scans of a JPEG. Inside a scan, the byte FF is never followed by DA."""
    return payload.count(b"\xff\xda")


def check_work(image: Image.Image, payload: bytes) -> None:
    """Raises UserError for images made to keep a decoder busy for hours; `image` need not be decoded."""
    if image.format in ("JPEG", "MPO") and scans(payload) > MAX_SCANS:
        raise UserError(f"a JPEG of {scans(payload)} scans takes too long to decode; save it again")
    if image.format == "BMP" and image.info.get("compression") in (1, 2) and len(payload) > MAX_RUNS:
        raise UserError("a BMP in so many run lengths takes too long to decode; save it as PNG")


def check_stated(width: int, height: int, stated: Size | None) -> None:
    """Raises UserError if a record states another size than its image has: its regions would be misplaced."""
    if stated is not None and tuple(stated) != (width, height):
        raise UserError(
            f"the image has {width} x {height} pixels (EXIF rotation is not applied), but its record says "
            f"{stated[0]} x {stated[1]}; correct the size, and the coordinates that were measured with it"
        )


def resize_square(image: Image.Image, size: int) -> np.ndarray:
    """RGB pixels [size, size, 3] uint8, resized by Pillow's antialiased bicubic (a = -0.5).

    The aspect ratio is not kept and nothing is cropped (released visual.py: Resize((448, 448), BICUBIC) on the
    Pillow image). An image of that size is returned unchanged, as the filter would. The two passes are called one by
    one, in the order of Pillow 12: Pillow 13 changes the order, and with it the rounding.
    """
    if image.size != (size, size):
        between = (image.width, size) if resizes_height_first(*image.size, size) else (size, image.height)
        for shape in (between, (size, size)):
            image = image.resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(image)


def resizes_height_first(width: int, height: int, size: int) -> bool:
    """Whether Pillow 12 resizes the height of such an image before its width: it does for extremely tall ones."""
    return height > 100 * width and size < height


def resize_center(image: Image.Image, size: int) -> np.ndarray:
    """RGB pixels [size, size, 3] uint8: the shorter side is scaled to `size`, and the middle cut out.

    This is OpenCLIP's transform for evaluation, to the bit for RGB and grey images, except strips: those are cut before
    they are scaled.
    """
    (width, height), (left, top) = center_window(*image.size, size)
    if is_strip(*image.size):
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    for shape in ((width, image.height), (width, height)):  # the order of Pillow 12, see `resize_square`
        image = image.resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def center_window(width: int, height: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height after the shorter side is scaled to `size`; left and top of the square in the middle."""
    scaled = int(size * width / min(width, height)), int(size * height / min(width, height))
    return scaled, (round((scaled[0] - size) / 2), round((scaled[1] - size) / 2))


def is_strip(width: int, height: int) -> bool:
    """Whether an image is more than 16 times as long as wide: scaled, one of 1 x 30,000 pixels would need gigabytes."""
    return max(width, height) > 16 * min(width, height)

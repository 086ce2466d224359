"""Rules on the pictures of a pair (paper, A.1, steps 1 and 2): opening, rewriting, sizes and shapes.

    recipe = (.., rule(open_pictures), rule(smallest_side, least=64), rule(aspect_ratio, most=3.0))

`open_pictures` reads the bytes and the true size; only the header is decoded unless a picture has to be rewritten. The
bytes stay as they are wherever training (`qwenvl_jax.data.images`) reads them as their author meant; docs/cleaning.md
lists the choices.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, JpegImagePlugin

from data_pipelines.clean.rule import Dropped, Rewritten, Verdict
from data_pipelines.pair import Box, Picture, RawPair
from qwenvl_jax.data.images import exact
from qwenvl_jax.runtime.errors import UserError

JPEG_QUALITY = 95  # of a turned picture
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_TURNS = range(2, 9)  # EXIF orientations that are not upright; from 5 on, width and height change
_SIDEWAYS = range(5, 9)


class _Bad(Exception):
    """A picture that cannot be used; the argument is the reason."""


class _Opened(NamedTuple):
    """A picture with its bytes and true size, why it was rewritten, and the factors by which its boxes grow."""

    picture: Picture
    causes: tuple[str, ...]
    scale: tuple[float, float] = (1.0, 1.0)


class _Settings(NamedTuple):
    """How the pictures of a pair are opened.

    Attributes:
      boxed: whether boxes refer to them, so that they must not be turned.
      in_pixels: whether these boxes are in pixels of the stated size.
      decode, frames: as in `open_pictures`.
    """

    boxed: bool
    in_pixels: bool
    decode: bool
    frames: str


def open_pictures(pair: RawPair, decode: bool = False, frames: str = "one") -> Verdict:
    """Reads all pictures: their bytes, their true sizes, and what training would misread.

    Contents decide the format, not names. The rule drops pictures that are not JPEG, PNG, WebP, GIF or BMP, that are
    animated, that have too many pixels or are too slow to decode, or that are fully transparent. Transparent pictures
    are laid on white, 16-bit grey is scaled to 8 bits, and a picture that EXIF turns is turned unless boxes refer to it
    as stored. If the corpus states another size, boxes are scaled with it; a size of another shape drops a pair with
    boxes.

    Args:
      pair: with pictures as bytes or named by path.
      decode: whether all pixels are decoded to notice truncated files, at some milliseconds per picture.
      frames: "one" drops animated pictures, "first" keeps them, of which training sees the first frame.

    Raises:
      OSError, StorageError: if a file cannot be read.
    """
    boxed = _has_boxes(pair)
    settings = _Settings(boxed, boxed and not pair.in_thousandths, decode, frames)
    try:
        opened = [_open(picture, settings) for picture in pair.pictures]
    except _Bad as error:
        return Dropped(str(error))
    pictures = tuple(each.picture for each in opened)
    if pictures == pair.pictures:
        return pair
    causes = tuple(sorted({cause for each in opened for cause in each.causes}))
    changed = dataclasses.replace(pair, pictures=pictures)
    if opened[0].scale != (1.0, 1.0):
        if len(pictures) > 1 or pair.turns:
            return Dropped("the stated size is of another picture")
        changed = _scaled(changed, *opened[0].scale)
    return Rewritten(changed, causes)


def smallest_side(pair: RawPair, least: int) -> Verdict:
    """Drops pairs with a picture whose shorter side has fewer than `least` pixels (A.1, step 2)."""
    if reason := _size_unknown(pair):
        return Dropped(reason)
    return Dropped("too small") if any(min(p.width, p.height) < least for p in pair.pictures) else pair


def aspect_ratio(pair: RawPair, most: float) -> Verdict:
    """Drops pairs with a picture whose longer side is more than `most` times its shorter one (A.1, step 1)."""
    if reason := _size_unknown(pair):
        return Dropped(reason)
    elongated = any(max(p.width, p.height) > most * min(p.width, p.height) for p in pair.pictures)
    return Dropped("too elongated") if elongated else pair


def _size_unknown(pair: RawPair) -> str:
    return "unknown size" if any(p.width <= 0 or p.height <= 0 for p in pair.pictures) else ""


def _has_boxes(pair: RawPair) -> bool:
    if pair.lines or any(region.boxes for region in pair.regions):
        return True
    return any(part.get("boxes") or part.get("quads") for turn in pair.turns for part in turn["parts"])


def _open(picture: Picture, settings: _Settings) -> _Opened:
    payload = picture.read() if picture.encoded or picture.path else b""
    if not payload:
        raise _Bad("an empty file")
    if len(payload) > exact.MAX_BYTES:
        raise _Bad("too many bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(payload), formats=exact.FORMATS)
        except Image.DecompressionBombError:
            raise _Bad("too many pixels") from None
        except Exception:  # Pillow's plugins raise nearly anything on damaged files
            raise _Bad("not a JPEG, PNG, WebP, GIF or BMP") from None
        stated = (picture.width, picture.height) if picture.width and picture.height else None
        return _prepared(picture, payload, image, stated, settings)


def _prepared(
    picture: Picture, payload: bytes, image: Image.Image, stated: tuple[int, int] | None, settings: _Settings
) -> _Opened:
    """The picture as training shall read it."""
    _check_size(image, payload)
    if settings.frames == "one" and _is_animated(image):
        raise _Bad("animated")
    orientation = _orientation(image)
    turned_size = image.size[::-1] if orientation in _SIDEWAYS else image.size
    turns = orientation in _TURNS and (not settings.boxed or (stated == turned_size != image.size))
    causes: list[str] = []
    size = image.size
    try:
        rewritten = _readable(image, causes)
        if turns:
            rewritten = _turned(rewritten or image, orientation)
            causes.append("turned as EXIF says")
        if rewritten is not None:
            size = rewritten.size
            payload = _encoded(rewritten, image)
        elif settings.decode:
            exact.decode_image(payload)
    except (MemoryError, _Bad):
        raise
    except Exception:
        raise _Bad("truncated or damaged") from None
    scale = (1.0, 1.0)
    if stated is not None and stated != size:
        causes.append("stated size corrected")
        if settings.in_pixels:
            scale = (size[0] / stated[0], size[1] / stated[1])
            if abs(scale[0] - scale[1]) * max(stated) > 1.5:  # more than the rounding of both sides
                raise _Bad("the stated size is of another picture")
    prepared = dataclasses.replace(picture, encoded=payload, path="", width=size[0], height=size[1])
    return _Opened(prepared, tuple(causes), scale)


def _check_size(image: Image.Image, payload: bytes) -> None:
    if not exact.bearable(*image.size):
        raise _Bad("too many pixels")
    try:
        exact.check_work(image, payload)
    except UserError:
        raise _Bad("too slow to decode") from None


def _is_animated(image: Image.Image) -> bool:
    """Whether there is a second frame. The pictures of an MPO (a JPEG of some cameras) are no frames."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:
        raise _Bad("truncated or damaged") from None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if it is missing or unreadable."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _readable(image: Image.Image, causes: list[str]) -> Image.Image | None:
    """Pixels that training would otherwise misread; None if it reads the file as it is."""
    if image.mode.startswith("I"):
        causes.append("16 bits scaled to 8")
        grey_HW = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey_HW.astype(np.uint8))
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layers = image.convert("RGBA")
        least, most = layers.getchannel("A").getextrema()
        if most == 0:
            raise _Bad("fully transparent")
        if isinstance(least, int) and least < 255:
            causes.append("laid on white")
            return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return None


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    image = image.copy()
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation  # a rewritten picture has lost it
    return ImageOps.exif_transpose(image)


def _encoded(image: Image.Image, source: Image.Image) -> bytes:
    """A JPEG if the source is one, else a PNG."""
    buffer = io.BytesIO()
    profile = source.info.get("icc_profile")
    if source.format in ("JPEG", "MPO"):
        if image.mode not in ("RGB", "L"):
            image = image.convert("RGB")
            profile = None
        sampling = JpegImagePlugin.get_sampling(source)
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=max(sampling, 0), icc_profile=profile)
    else:
        if image.mode not in ("RGB", "L", "P", "1"):
            image = image.convert("RGB")
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _scaled(pair: RawPair, x: float, y: float) -> RawPair:
    """The pair with boxes and quadrilaterals in pixels of a picture that is `x` and `y` times as large."""

    def box(value: Box) -> Box:
        return (value[0] * x, value[1] * y, value[2] * x, value[3] * y)

    regions = tuple(dataclasses.replace(r, boxes=tuple(box(b) for b in r.boxes)) for r in pair.regions)
    lines = tuple(
        dataclasses.replace(
            line,
            quad=(
                (line.quad[0][0] * x, line.quad[0][1] * y),
                (line.quad[1][0] * x, line.quad[1][1] * y),
                (line.quad[2][0] * x, line.quad[2][1] * y),
                (line.quad[3][0] * x, line.quad[3][1] * y),
            ),
        )
        for line in pair.lines
    )
    return dataclasses.replace(pair, regions=regions, lines=lines)

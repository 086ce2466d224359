"""Pictures with regions outlined on them: as inline SVG for a page, as pixels for a PNG file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from PIL import Image, ImageDraw

from qwenvl_jax.html.style import PALETTE

SHOWN_SIDE = 1024  # px; the longer side of a picture on a page is scaled down to this
DRAWN_SIDE = 2048  # px; the longer side of a drawn picture is at most this
_LABEL_PIXELS = 16  # font size of labels in a drawn picture
_LABEL_SHARE = 0.054  # font size of labels on a page, as a share of the picture's width
_SMALL_LABEL_SHARE = 0.032  # the same if there are more than _FEW regions
_FEW = 8

Corners = Sequence[Sequence[float]]


class Region(NamedTuple):
    """An outline on a picture.

    Attributes:
      corners: [x, y] of each corner in the picture's pixels, or in the units that `figure` is given.
      color: a CSS colour. A picture drawn as pixels needs one that Pillow knows, such as "#1971c2".
      label: shown at the first corner.
      dashed: whether the outline is dashed (only on a page).
      faint: whether the outline is thin and half transparent, without a label (only on a page).
    """

    corners: Corners
    color: str = PALETTE[0]
    label: str = ""
    dashed: bool = False
    faint: bool = False


def corners_of_box(box: Sequence[float]) -> list[tuple[float, float]]:
    """The four corners of [x1, y1, x2, y2]."""
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def palette_color(index: int) -> str:
    """The colour of the region with this number; colours repeat."""
    return PALETTE[index % len(PALETTE)]


def data_uri(image: Image.Image, *, lossless: bool) -> str:
    """The pixels as a `data:` address, PNG if lossless and JPEG otherwise."""
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=92, subsampling=0)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def within(image: Image.Image, side: int) -> Image.Image:
    """The picture itself, or a smaller one if a side is longer than `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize(_scaled_size(image, scale))


def _scaled_size(image: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def figure(
    image: Image.Image,
    regions: Sequence[Region] = (),
    *,
    alt: str,
    units: tuple[int, int] | None = None,
    lossless: bool = False,
    pixelated: bool = False,
) -> str:
    """An `<svg>` with the picture and outlines over it, which stay sharp at any size.

    Args:
      image: the picture as it is to be seen. It is encoded anew, because a browser would turn a file by its EXIF
        orientation, which the model does not.
      regions: in drawing order.
      alt: describes the picture to screen readers.
      units: width and height of the picture in the coordinates of the regions; by default its pixels.
      lossless: whether the picture is embedded as PNG.
      pixelated: whether a browser shall show the pixels of a magnified picture instead of blending them.
    """
    width, height = units or image.size
    address = data_uri(within(image, SHOWN_SIDE), lossless=lossless)
    style = ' class="pixelated"' if pixelated else ""
    outlines = [(region, " ".join(f"{_number(x)},{_number(y)}" for x, y in region.corners)) for region in regions]
    parts = [f'<svg{style} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">']
    parts.append(f'<image href="{address}" width="{width}" height="{height}" preserveAspectRatio="none"/>')
    parts += [f'<polygon class="halo" points="{points}"/>' for region, points in outlines if not region.faint]
    for region, points in outlines:
        classes = "region" + (" dashed" if region.dashed else "") + (" faint" if region.faint else "")
        parts.append(f'<polygon class="{classes}" stroke="{region.color}" points="{points}"/>')
    size = width * (_LABEL_SHARE if len(regions) <= _FEW else _SMALL_LABEL_SHARE)
    for region in regions:
        if region.label and region.corners and not region.faint:
            parts.append(_label(region, size, width, height))
    return "".join(parts) + "</svg>"


def _number(value: float) -> str:
    """A coordinate to a tenth: 12, 12.5."""
    return f"{value:.1f}".removesuffix(".0")


def _label(region: Region, size: float, width: float, height: float) -> str:
    """Text above the first corner, or below it if there is no room above."""
    margin = size / 6
    x, y = region.corners[0]
    x = min(max(x, margin / 2), width - 4 * margin)
    y = y - margin if y > size else y + size
    y = min(y, height - margin)
    return (
        f'<text class="label" x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}" '
        f'stroke-width="{_number(margin)}" fill="{region.color}">{escape(region.label)}</text>'
    )


def draw(image: Image.Image, regions: Sequence[Region], *, scale: float = 1.0, width: int = 4) -> Image.Image:
    """A copy of a picture, enlarged or reduced, with outlines and labels on it.

    Args:
      image: the picture.
      regions: in its pixels.
      scale: new size divided by old size.
      width: of an outline, in pixels of the copy.
    """
    copy = image.resize(_scaled_size(image, scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(copy)
    for region in regions:
        corners = [(x * scale, y * scale) for x, y in region.corners]
        pen.polygon(corners, outline=region.color, width=width)
        # Pillow's built-in font has no Chinese; such a region is recognised by its colour alone.
        if region.label and region.label.isascii():
            x, y = min(corner[0] for corner in corners), min(corner[1] for corner in corners)
            text_at = (x + 4, y + 2)
            left, top, right, bottom = pen.textbbox(text_at, region.label, font_size=_LABEL_PIXELS)
            pen.rectangle((left - 4, top - 2, right + 4, bottom + 2), fill=region.color)
            pen.text(text_at, region.label, fill="white", font_size=_LABEL_PIXELS)
    return copy


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Sequence[float]]], side: int = 640) -> Image.Image:
    """A copy with each (label, [x1, y1, x2, y2] in pixels) drawn on it; equal labels share a colour.

    The copy is at least `side` pixels wide, unless its longer side would then exceed DRAWN_SIDE pixels.
    """
    labels = list(dict.fromkeys(label for label, _ in boxes))
    regions = [Region(corners_of_box(box), palette_color(labels.index(label)), label) for label, box in boxes]
    scale = min(max(1.0, side / image.width), DRAWN_SIDE / max(image.size))
    return draw(image, regions, scale=scale)

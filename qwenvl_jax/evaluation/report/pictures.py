"""Images with boxes and quadrilaterals: as inline SVG for the page, as PNG for the terminal chat."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from qwenvl_jax.data.images.decode import decode_image
from qwenvl_jax.runtime.errors import UserError

PREDICTED, TRUE = "p", "t"
_COLORS = ("#d9480f", "#1971c2", "#2b8a3e", "#9c36b5", "#e67700", "#0b7285")
_JPEG = b"\xff\xd8"  # how one begins
SHOWN_SIDE = 1024  # px of a picture's longer side on the page, at most
DRAWN_SIDE = 2048  # px of a drawn picture's longer side, at most


def data_uri(image: Image.Image, lossless: bool) -> str:
    """Pixels as a data: address. Encoded anew, because a browser turns what EXIF says, and the model does not."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG") if lossless else image.save(buffer, "JPEG", quality=92, subsampling=0)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def within(image: Image.Image, side: int) -> Image.Image:
    """The picture itself, or scaled down so that neither side is longer than `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def figure(
    payload: bytes,
    shapes: Sequence[tuple[str, Sequence[Sequence[float]]]] = (),
    alt: str = "",
    size: Sequence[float] | None = None,
) -> str:
    """An `<svg>` with the image as the model saw it and outlines over it, sharp at any size.

    Args:
      payload: the encoded image.
      shapes: (PREDICTED or TRUE, corners [x, y] in pixels of the image, or in the unit of `size`).
      alt: HTML-escaped text for screen readers.
      size: [width, height] of the image in the unit of the shapes: a dialogue may give places in thousandths.

    Returns:
      The element; a note where the image cannot be read.
    """
    try:
        image = decode_image(payload)
    except UserError:
        return '<p class="soft small">This picture cannot be read.</p>'
    width, height = image.size
    address = data_uri(within(image, SHOWN_SIDE), lossless=not payload.startswith(_JPEG))
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">']
    parts.append(f'<image href="{address}" width="{width}" height="{height}" preserveAspectRatio="none"/>')
    across, down = (width / size[0], height / size[1]) if size else (1.0, 1.0)
    for kind, corners in shapes:
        points = " ".join(f"{x * across:.1f},{y * down:.1f}" for x, y in corners)
        parts.append(f'<polygon class="shape {kind}" points="{points}"/>')
    return "".join(parts) + "</svg>"


def corners_of_box(box: Sequence[float]) -> list[tuple[float, float]]:
    """The four corners of [x1, y1, x2, y2]."""
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Sequence[float]]], side: int = 640) -> Image.Image:
    """A copy with each (label, [x1, y1, x2, y2] in pixels) drawn on it; equal labels share a colour.

    It is at least `side` pixels wide, unless its longer side would have more than DRAWN_SIDE pixels.
    """
    scale = min(max(1.0, side / image.width), DRAWN_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    drawn = image.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(drawn)
    labels = list(dict.fromkeys(label for label, _ in boxes))
    for label, box in boxes:
        color = _COLORS[labels.index(label) % len(_COLORS)]
        x1, y1, x2, y2 = (value * scale for value in box)
        x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        pen.rectangle((x1, y1, x2, y2), outline=color, width=4)
        # Pillow's own font has no CJK; such a label is told apart by its colour alone.
        if label and label.isascii():
            left, top, right, bottom = pen.textbbox((x1 + 4, y1 + 2), label, font_size=16)
            pen.rectangle((left - 4, top - 2, right + 4, bottom + 2), fill=color)
            pen.text((x1 + 4, y1 + 2), label, fill="white", font_size=16)
    return drawn

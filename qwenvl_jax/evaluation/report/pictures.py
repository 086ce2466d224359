"""Images with boxes and quadrilaterals: as inline SVG for the page, as PNG for the terminal chat."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw

from qwenvl_jax.data.image import decode_image

PREDICTED, TRUE = "p", "t"
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_COLORS = ("#d9480f", "#1971c2", "#2b8a3e", "#9c36b5", "#e67700", "#0b7285")


def data_uri(payload: bytes) -> str:
    """An encoded image as a data: address; formats that browsers may not know become PNG."""
    image_format = Image.open(io.BytesIO(payload)).format or ""
    if image_format not in _MIME:
        buffer = io.BytesIO()
        decode_image(payload).save(buffer, format="PNG")
        payload, image_format = buffer.getvalue(), "PNG"
    return f"data:{_MIME[image_format]};base64,{base64.b64encode(payload).decode()}"


def figure(payload: bytes, shapes: Sequence[tuple[str, Sequence[Sequence[float]]]] = (), alt: str = "") -> str:
    """An `<svg>` with the image and outlines over it, sharp at any size.

    Args:
      payload: the encoded image.
      shapes: (PREDICTED or TRUE, corners [x, y] in pixels of the image).
      alt: HTML-escaped text for screen readers.
    """
    width, height = decode_image(payload).size
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}">']
    parts.append(f'<image href="{data_uri(payload)}" width="{width}" height="{height}"/>')
    for kind, corners in shapes:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polygon class="shape {kind}" points="{points}"/>')
    return "".join(parts) + "</svg>"


def corners_of_box(box: Sequence[float]) -> list[tuple[float, float]]:
    """The four corners of [x1, y1, x2, y2]."""
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[str, Sequence[float]]], side: int = 640) -> Image.Image:
    """A copy, at least `side` pixels wide, with each (label, [x1, y1, x2, y2] in pixels) drawn on it.

    Equal labels share a colour.
    """
    scale = max(1.0, side / image.width)
    size = (round(image.width * scale), round(image.height * scale))
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

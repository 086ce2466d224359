"""Tiny pictures that differ from one another."""

from __future__ import annotations

import functools
import io

from PIL import Image

WIDTH = 24
HEIGHT = 16


@functools.cache
def picture(number: int, kind: str = "JPEG", width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """An encoded picture of two colours that depend on `number`; the same bytes every time."""
    colours = [
        ((number * step + 40) % 256, (number * 7 * step) % 256, (255 - number * step) % 256) for step in (37, 91)
    ]
    image = Image.new("RGB", (width, height), colours[0])
    image.paste(colours[1], (0, 0, width // 2, height // 2))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()

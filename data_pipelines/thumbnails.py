"""Thumbnails of pictures for reports."""

from __future__ import annotations

import io

from PIL import Image

_QUALITY = 80


def jpeg_thumbnail(picture: Image.Image, side: int) -> bytes:
    """A JPEG of a picture, of which the longer side is at most `side` pixels; `picture` is made smaller in place."""
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()

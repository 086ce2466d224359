"""Which picture of several the regions of an answer lie in, and these regions in its pixels.

A model writes thousandths of a picture and does not say of which. The newest word decides: a region lies in the picture
that the answer has named before it as "Picture N", or else in the one that was shown or named last in the dialogue. If
the same turn shows pictures and names one, that one is meant. People who mean another picture find the thousandths
beside the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwenvl_jax.data import tags

# As the prompt numbers them, "Picture 1: ", and as people do. `page/answer.js` has the same pattern.
_NAME = re.compile(r"(?:(?<![a-z])(?:picture|image|photo)\s*|图片?\s*)([0-9]{1,4})(?![0-9])", re.IGNORECASE)


def named_pictures(text: str) -> list[tuple[int, int]]:
    """The pictures that a text names, in its order: the offset of the name, and the index, 0 for "Picture 1"."""
    return [(match.start(), int(match.group(1)) - 1) for match in _NAME.finditer(text)]


def last_named(text: str, pictures: range) -> int | None:
    """The index of the picture that a text names last, of those that can be meant; None if it names none of them."""
    named = [index for _, index in named_pictures(text) if index in pictures]
    return named[-1] if named else None


def regions_of(
    text: str, sizes: Sequence[tuple[int, int]], about: int, pictures: range | None = None
) -> list[dict[str, Any]]:
    """The boxes and quadrilaterals of an answer.

    Args:
      text: the answer, with its tags.
      sizes: width and height of every picture of the dialogue, in pixels; not empty.
      about: index of the picture that is meant until the answer names another one.
      pictures: the indices that the answer can mean; all by default.

    Returns:
      First the boxes, then the quadrilaterals. Of each `ref`, "" without one, and `image`, the index of the picture;
      then `box`, [x1, y1, x2, y2], or `quad`, four corners [x, y], in pixels of that picture, and as `thousandths` the
      same as the model wrote it.
    """
    pictures = range(len(sizes)) if pictures is None else pictures
    names = [(start, index) for start, index in named_pictures(text) if index in pictures]
    regions: list[dict[str, Any]] = []
    for start, ref, points in tags.parse_regions(text):
        before = [index for offset, index in names if offset < start]
        image = before[-1] if before else about
        pixels = tags.to_pixels(points, *sizes[image])
        shape = "box" if len(points) == 4 else "quad"
        regions.append(
            {"ref": ref, "image": image, shape: _corners(shape, pixels), "thousandths": _corners(shape, points)}
        )
    return regions


def _corners(shape: str, values: Sequence[float]) -> list[Any]:
    return list(values) if shape == "box" else [list(corner) for corner in zip(values[::2], values[1::2], strict=True)]

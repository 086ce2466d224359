"""The picture of a record as the model saw it, with predicted and true regions."""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl_jax.data.images.exact import decode_image
from qwenvl_jax.html.figures import SHOWN_SIDE, Corners, Region, figure, within
from qwenvl_jax.runtime.errors import UserError

_JPEG_START = b"\xff\xd8"


def predicted(corners: Corners) -> Region:
    """A region that the model wrote."""
    return Region(corners, "var(--predicted)")


def true(corners: Corners) -> Region:
    """A region of the record."""
    return Region(corners, "var(--true)", dashed=True)


def picture(
    payload: bytes,
    regions: Sequence[Region] = (),
    *,
    alt: str = "",
    size: Sequence[float] | None = None,
    side: int = SHOWN_SIDE,
) -> str:
    """An `<svg>` with the picture and its regions.

    Args:
      payload: the encoded image.
      regions: in pixels of the image, or in the units of `size`.
      alt: describes the picture to screen readers.
      size: [width, height] of the image in the units of the regions; a dialogue may use thousandths.
      side: a picture with a longer side of more pixels than this is scaled down.

    Returns:
      The element, or a note if the image cannot be read.
    """
    try:
        image = decode_image(payload)
    except UserError:
        return '<p class="soft small">This picture cannot be read.</p>'
    if size is not None:
        x_scale = image.width / size[0]
        y_scale = image.height / size[1]
        regions = [
            region._replace(corners=[(x * x_scale, y * y_scale) for x, y in region.corners]) for region in regions
        ]
    lossless = not payload.startswith(_JPEG_START)
    return figure(within(image, side), regions, alt=alt, units=image.size, lossless=lossless)

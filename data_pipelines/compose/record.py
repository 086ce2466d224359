"""A record from a pair and the contents of its samples: the picture once, and all its annotations of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from data_pipelines.pair import RawPair
from qwenvl_jax.data.annotations import ANNOTATIONS
from qwenvl_jax.data.languages import language_of
from qwenvl_jax.data.schema import Record, check_record
from qwenvl_jax.data.tags import clip_points
from qwenvl_jax.data.tasks import Content
from qwenvl_jax.runtime.errors import UserError


def record_of(
    pair: RawPair, task: str, contents: Sequence[Mapping[str, Any]], shared: Mapping[str, Any] | None = None
) -> Record | None:
    """The record of a pair for one task; None if there are no contents.

    Args:
      pair: whose pictures have their bytes.
      task: of the record.
      contents: of the samples, without what they share.
      shared: keys of all contents, such as the size of the picture.

    Raises:
      UserError: if the record is not well formed (`check_record`).
    """
    if not contents:
        return None
    annotations = contents[0] if len(contents) == 1 else {ANNOTATIONS: [dict(content) for content in contents]}
    content = cast(Content, {**annotations, **(shared or {})})
    language = pair.language or language_of(content)
    images = tuple(picture.read() for picture in pair.pictures)
    return check_record(Record(pair.id, task, pair.source, language, pair.license, images, content))


def size_of(pair: RawPair) -> dict[str, float]:
    """The keys `width` and `height` of a pair with one picture.

    Raises:
      UserError: if its size is not known.
    """
    if len(pair.pictures) != 1 or not pair.pictures[0].width or not pair.pictures[0].height:
        raise UserError(
            f"pair {pair.id!r} of {pair.source!r} has boxes but not one picture of a known size; add the rule "
            "open_pictures to its recipe"
        )
    return {"width": pair.pictures[0].width, "height": pair.pictures[0].height}


def points_in(points: Sequence[float], size: Mapping[str, float], shape: str) -> list[float]:
    """`x, y, x, y, ..` in pixels, moved onto the picture's edge where rounding has left it.

    Raises:
      UserError: if a point is outside the picture; the rules of the recipe should have removed it.
    """
    return clip_points(points, size["width"], size["height"], shape)

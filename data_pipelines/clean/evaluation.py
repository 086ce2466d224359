"""The one rule of evaluation sets: it reads the pictures of a pair and drops nothing that a benchmark counts.

Scores are comparable only if every question of the benchmark is asked, about the picture as it was published. So no
pair is dropped and no picture is encoded anew. A picture that is missing or damaged stays in the record as it is, and
the evaluation counts its questions as wrong. The causes are counted, and the report of the build shows them.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image

from data_pipelines.clean.rule import Rewritten, Verdict
from data_pipelines.pair import Box, Picture, RawPair, Region
from qwenvl_jax.data.images import exact

MISSING = "picture missing"
UNREADABLE = "picture unreadable"
RESIZED = "picture of another size than stated; boxes scaled"
OTHER = "picture of another shape than stated"
CLIPPED = "box clipped to the picture"
NO_BOX = "phrase without one box in the picture left out"
_NO_FILE = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
# The causes of which a user should hear at the end of a build.
LOST = (MISSING, UNREADABLE, OTHER, NO_BOX)


def evaluation_pictures(pair: RawPair) -> Verdict:
    """Reads all pictures; their bytes stay as they are, empty for a picture that is missing.

    Boxes are scaled if a copy of the picture has another size than the corpus states, and clipped to the picture. A
    phrase is left out, and counted, if it does not have one box in the picture, unless no phrase has a box.

    Raises:
      OSError, StorageError: if a picture is there and cannot be read.
    """
    causes: set[str] = set()
    pictures = tuple(_read(picture, causes) for picture in pair.pictures)
    regions = pair.regions
    if regions and len(pictures) == 1:
        size = _size(pictures[0])
        pictures, regions = _with_boxes(pictures[0], size, regions, causes)
    return Rewritten(dataclasses.replace(pair, pictures=pictures, regions=regions), tuple(sorted(causes)))


def missing_pictures(manifest: Mapping[str, Any]) -> int:
    """How many records of a finished build lack a picture, which may be there by now."""
    rules = (each for each in manifest["rules"] if each["rule"] == evaluation_pictures.__name__)
    return sum(each["causes"].get(MISSING, 0) for each in rules)


def _read(picture: Picture, causes: set[str]) -> Picture:
    try:
        payload = picture.read() if picture.encoded or picture.path else b""
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in _NO_FILE:
            raise  # another try may succeed, so the row fails and can be retried
        payload = b""
    except ValueError:  # a path with a null character
        payload = b""
    if not payload:
        causes.add(MISSING)
    elif _size_of(payload) is None:
        causes.add(UNREADABLE)
    return dataclasses.replace(picture, encoded=payload, path="")


def _size(picture: Picture) -> tuple[int, int] | None:
    return _size_of(picture.encoded) if picture.encoded else None


def _size_of(payload: bytes) -> tuple[int, int] | None:
    """Width and height in pixels as the header states them; None if it cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(payload), formats=exact.FORMATS).size
        except Exception:  # Pillow's plugins raise nearly anything on damaged files
            return None


def _with_boxes(
    picture: Picture, size: tuple[int, int] | None, regions: tuple[Region, ...], causes: set[str]
) -> tuple[tuple[Picture, ...], tuple[Region, ...]]:
    """The picture with the size to which its boxes refer, and the phrases that have one box in it."""
    stated = (picture.width, picture.height)
    if not all(stated):
        stated = size or _covering(regions)
    scale = (1.0, 1.0)
    if size is not None and size != stated:
        scale = (size[0] / stated[0], size[1] / stated[1])
        if abs(scale[0] - scale[1]) * max(stated) > 1.5:  # more than the rounding of both sides
            causes.add(OTHER)
            scale = (1.0, 1.0)
        else:
            causes.add(RESIZED)
            stated = size
    kept = []
    hidden = not any(region.boxes for region in regions)  # the publisher keeps the boxes of a test set
    for region in () if hidden else regions:
        box = _clipped(region.boxes[0], scale, stated) if len(region.boxes) == 1 else None
        if box is None:
            causes.add(NO_BOX)
            continue
        if scale == (1.0, 1.0) and box != region.boxes[0]:
            causes.add(CLIPPED)
        kept.append(dataclasses.replace(region, boxes=(box,)))
    return (dataclasses.replace(picture, width=stated[0], height=stated[1]),), regions if hidden else tuple(kept)


def _covering(regions: tuple[Region, ...]) -> tuple[int, int]:
    """The least size that has all boxes, for a picture that is missing and whose size nobody states."""
    corners = [box[2:] for region in regions for box in region.boxes]
    return max([1, *(int(x + 1) for x, _ in corners)]), max([1, *(int(y + 1) for _, y in corners)])


def _clipped(box: Box, scale: tuple[float, float], size: tuple[int, int]) -> Box | None:
    """A box in pixels of a picture of `size`; None if nothing of it is in the picture."""
    x1, y1, x2, y2 = (value * scale[k % 2] for k, value in enumerate(box))
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1])))
    return clipped if clipped[0] < clipped[2] and clipped[1] < clipped[3] else None
